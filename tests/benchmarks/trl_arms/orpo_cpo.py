"""TRL's ORPOTrainer and CPOTrainer, which compute logits of every position on any device: `best` saves the checkpointing only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.benchmarks.profiles import Case, make_model
from tests.benchmarks.trl_arms.arm import DatasetArm, arguments
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer

ROW = {"prompt": ["1 and "], "chosen": ["one more"], "rejected": ["two"]}
IGNORED = -100
"""The label of a token that is not counted."""


class PairArm(DatasetArm):
    """What both trainers share: rows as their tokenize_row returns them."""

    def examples(self, trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
        """Return ids, masks and labels of the prompt and of both sequences."""
        return [_example(tree) for tree in trees]


class OrpoArm(PairArm):
    """ORPOTrainer."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        trainer = ORPOTrainer(
            model=make_model(case),
            args=ORPOConfig(**case.method.settings, remove_unused_columns=False, **arguments(case, folder, best=best)),
            train_dataset=Dataset.from_dict(ROW),
            processing_class=tiny_tokenizer(),
        )
        super().__init__(case, trainer, best=best)


class CpoArm(PairArm):
    """CPOTrainer, SimPO being one of its loss types."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        settings = dict(case.method.settings)
        if case.method.family == "simpo":
            settings["loss_type"] = "simpo"
        trainer = CPOTrainer(
            model=make_model(case),
            args=CPOConfig(**settings, remove_unused_columns=False, **arguments(case, folder, best=best)),
            train_dataset=Dataset.from_dict(ROW),
            processing_class=tiny_tokenizer(),
        )
        super().__init__(case, trainer, best=best)


def _example(tree: PromptTree) -> dict[str, Any]:
    prompt = list(tree.prompt_ids)
    example: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for branch in tree.branches:
        ids = prompt + list(branch.token_ids)
        example[f"{branch.role}_input_ids"] = ids
        example[f"{branch.role}_attention_mask"] = [1] * len(ids)
        example[f"{branch.role}_labels"] = [IGNORED] * len(prompt) + list(branch.token_ids)
    return example
