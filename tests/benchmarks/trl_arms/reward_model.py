"""TRL's RewardTrainer, which has no head that scores every position, so that `best` saves the checkpointing only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from tests.benchmarks.profiles import SCORE_HEAD, Case, make_model
from tests.benchmarks.trl_arms.arm import DatasetArm, arguments
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer

ROW = {"prompt": ["1 and "], "chosen": ["one more"], "rejected": ["two"]}


class RewardArm(DatasetArm):
    """RewardTrainer on a sequence classification model whose body is the shape's and whose head's first weights are zeros."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        trainer = RewardTrainer(
            model=_classifier(case),
            args=RewardConfig(max_length=None, **case.method.settings, **arguments(case, folder, best=best)),
            train_dataset=Dataset.from_dict(ROW),
            processing_class=tiny_tokenizer(),
        )
        super().__init__(case, trainer, best=best)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the policy's parameters, the head by Truing's name for it."""
        weights = super().parameters()
        return weights | {SCORE_HEAD: weights.pop("score.weight")}

    def examples(self, trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
        """Return the ids of both whole sequences, and the margin where there is one."""
        return [_example(tree) for tree in trees]


def _classifier(case: Case) -> PreTrainedModel:
    body = make_model(case)
    body.config.num_labels = 1
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(body.config)
    model.model.load_state_dict(body.model.state_dict())
    with torch.no_grad():
        model.score.weight.zero_()
    return model


def _example(tree: PromptTree) -> dict[str, Any]:
    example: dict[str, Any] = {f"{branch.role}_ids": [*tree.prompt_ids, *branch.token_ids] for branch in tree.branches}
    if tree.margin is not None:
        example["margin"] = tree.margin
    return example
