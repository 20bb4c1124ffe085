"""TRL's side of the comparisons: its trainers' own collation and training step, then clip and update as its loop does them.

`best` is TRL as a GPU would run it: gradient checkpointing off, and its head told that it is on a device where it scores
completion tokens alone. Otherwise TRL is as it is shipped, in float32: gradient checkpointing on, and a head that scores every
position on a CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import disable_progress_bars
from torch import nn
from transformers import Trainer

from tests.benchmarks.arms import LEARNING_RATE, MAX_GRAD_NORM, SEED, Step
from tests.benchmarks.profiles import Case, move_from_reference
from truing.data.tree import PromptTree

disable_progress_bars()


class TrlArm:
    """What all trainers share: the optimiser step."""

    collate: Callable[[Sequence[PromptTree]], dict[str, Any]]
    """Returns what the trainer's step takes."""

    def __init__(self, case: Case, trainer: Trainer, *, best: bool) -> None:
        self.name = "trl-best" if best else "trl-shipped"
        self.case, self.trainer, self.best = case, trainer, best
        move_from_reference(self.parameters(), case.shape)
        trainer.create_optimizer_and_scheduler(num_training_steps=10_000)
        # by which the model's forward autocasts where the arguments say so
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1
        if not best:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})  # as Trainer.train() does

    @property
    def model(self) -> nn.Module:
        """The policy."""
        return self.trainer.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's own, inside accelerate's."""
        return getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the policy's parameters by name."""
        return dict(self.model.named_parameters())

    def prepare(self, batches: Sequence[Sequence[PromptTree]]) -> None:
        """Nothing to do."""

    def step(self, trees: Sequence[PromptTree]) -> Step:
        """Run what the trainer's loop runs for one optimiser step, without its logging and callbacks."""
        trainer = self.trainer
        batch = self.collate(trees)
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        with mock.patch("trl.trainer.utils._use_triton", lambda device: self.best or device.type == "cuda"):
            loss = trainer.training_step(trainer.model_wrapped, batch, items)
        norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1
        return Step(float(loss), float(norm), self._logged())

    def _logged(self) -> dict[str, float]:
        kept = getattr(self.trainer, "_metrics", None) or self.trainer._stored_metrics
        logged = {name: values[-1] for name, values in kept["train"].items()}
        kept["train"].clear()
        return logged


def arguments(case: Case, folder: Path, *, best: bool) -> dict[str, Any]:
    """Return the fields of transformers' TrainingArguments that every trainer gets."""
    return {
        "output_dir": str(folder / ("trl-best" if best else "trl-shipped")),
        "per_device_train_batch_size": case.prompts,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "gradient_checkpointing": not best,
        "bf16": case.device == "cuda",
        "use_cpu": case.device == "cpu",
        "report_to": "none",
        "seed": SEED,
    }


class DatasetArm(TrlArm, ABC):
    """A trainer on collected data: its own collator makes a batch of examples."""

    def collate(self, trees: Sequence[PromptTree]) -> dict[str, Any]:
        """Return what the trainer's step takes."""
        return self.trainer.data_collator(self.examples(trees))

    @abstractmethod
    def examples(self, trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
        """Return tokenised examples as the trainer's own preparation of a dataset would."""
