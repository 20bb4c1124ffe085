"""TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.benchmarks.profiles import Case, make_model
from tests.benchmarks.trl_arms.arm import DatasetArm, arguments
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer

ROW = {"prompt": ["1 and "], "completion": ["one more"]}
IGNORED = -100
"""The label of a token that is not counted."""


class SftArm(DatasetArm):
    """SFTTrainer, on padded rows or, padding-free, on all rows of a batch end to end, which is also what its packing trains on."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        trainer = SFTTrainer(
            model=make_model(case),
            args=SFTConfig(max_length=None, padding_free=case.method.padding_free, **arguments(case, folder, best=best)),
            train_dataset=Dataset.from_dict(ROW),
            processing_class=tiny_tokenizer(),
        )
        super().__init__(case, trainer, best=best)

    def examples(self, trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
        """Return ids, and labels of what the loss counts."""
        return [_example(tree) for tree in trees]


def _example(tree: PromptTree) -> dict[str, Any]:
    prompt, completion = list(tree.prompt_ids), list(tree.branches[0].token_ids)
    counted = prompt if tree.prompt_mask else [IGNORED] * len(prompt)
    return {"input_ids": prompt + completion, "labels": counted + completion}
