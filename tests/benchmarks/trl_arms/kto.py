"""TRL's KTOTrainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from tests.benchmarks.profiles import Case, make_model
from tests.benchmarks.trl_arms.arm import DatasetArm, arguments
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer

ROWS = {"prompt": ["1 and "] * 2, "completion": ["one more", "two"], "label": [True, False]}


class KtoArm(DatasetArm):
    """KTOTrainer, whose preparation moves completions one place on within a batch for the KL divergence, as the trees have them."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        model = make_model(case)
        trainer = KTOTrainer(
            model=model,
            ref_model=copy.deepcopy(model),
            args=KTOConfig(max_length=None, **case.method.settings, **arguments(case, folder, best=best)),
            train_dataset=Dataset.from_dict(ROWS),
            processing_class=tiny_tokenizer(),
        )
        super().__init__(case, trainer, best=best)

    def examples(self, trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
        """Return the ids of prompt, completion and mismatched completion, and the label."""
        return [self._example(tree) for tree in trees]

    def _example(self, tree: PromptTree) -> dict[str, Any]:
        branch, *mismatched = tree.branches
        example = {"prompt_ids": list(tree.prompt_ids), "completion_ids": list(branch.token_ids), "label": branch.label}
        if mismatched:
            example["KL_completion_ids"] = list(mismatched[0].token_ids)
        return example
