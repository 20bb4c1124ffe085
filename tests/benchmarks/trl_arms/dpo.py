"""TRL's DPOTrainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from tests.benchmarks.profiles import LORA_RANK, Case, make_model
from tests.benchmarks.trl_arms.arm import DatasetArm, arguments
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer

ROW = {"prompt": ["1 and "], "chosen": ["one more"], "rejected": ["two"]}
"""What the trainer is made with; batches of random tokens are collated by its own collator."""


class DpoArm(DatasetArm):
    """DPOTrainer."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        model, method = make_model(case), case.method
        own_reference = not (method.lora or method.precomputed)
        trainer = DPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model) if own_reference else None,
            args=DPOConfig(
                **method.settings,
                max_length=None,
                precompute_ref_log_probs=method.precomputed,
                **arguments(case, folder, best=best),
            ),
            train_dataset=Dataset.from_dict(ROW),
            processing_class=tiny_tokenizer(),
            peft_config=_lora() if method.lora else None,
        )
        self.stored: dict[int, tuple[float, float]] = {}
        self.start = copy.deepcopy(model.state_dict()) if method.precomputed else None
        super().__init__(case, trainer, best=best)

    def prepare(self, batches: Sequence[Sequence[PromptTree]]) -> None:
        """Take the reference's log-probabilities with the trainer's own function, where the case has them precomputed."""
        if self.start is None:
            return
        moved = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.start)
        for trees in batches:
            with mock.patch("trl.trainer.utils._use_triton", lambda device: True):
                chosen, rejected = self.trainer.compute_ref_log_probs(self.model, self.collate(trees))
            logps = zip(chosen.tolist(), rejected.tolist(), strict=True)
            self.stored.update(zip((tree.sample_id for tree in trees), logps, strict=True))
        self.model.load_state_dict(moved)
        self.start = None

    def examples(self, trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
        """Return the ids of prompt, chosen and rejected, and the reference's log-probabilities where they are precomputed."""
        return [self._example(tree) for tree in trees]

    def _example(self, tree: PromptTree) -> dict[str, Any]:
        chosen, rejected = (list(branch.token_ids) for branch in tree.branches)
        example: dict[str, Any] = {"prompt_ids": list(tree.prompt_ids), "chosen_ids": chosen, "rejected_ids": rejected}
        if tree.sample_id in self.stored:
            example["ref_chosen_logps"], example["ref_rejected_logps"] = self.stored[tree.sample_id]
        return example


def _lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules="all-linear")
