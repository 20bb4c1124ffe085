"""The one state of a run: what a step changes and what the next one depends on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _kind(thing: object) -> str:
    return f"<{type(thing).__name__}>"


@attrs.define(eq=False, kw_only=True)
class TrainState:
    """A run in progress or finished. The data's order is a function of seed and step, so `step` is its position too."""

    # what a notebook shows of a state fits on its screen: no module, token table or history in full
    model: PreTrainedModel | PeftModel = attrs.field(repr=_kind)
    """The policy; trained, and in evaluation mode, when the run is done."""
    tokenizer: PreTrainedTokenizerBase = attrs.field(repr=_kind)
    """As the run used it."""
    output_dir: Path
    """The run directory."""
    tokens_per_batch: int = attrs.field(repr=False)
    """Token budget of a forward: how a step is cut, which a resumed run does in the same way."""
    step: int = 0
    """Optimiser steps done."""
    epoch: float = 0.0
    """Passes over the data done."""
    history: list[dict[str, float]] = attrs.field(factory=list, repr=lambda lines: f"<{len(lines)} lines>")
    """Every line of metrics.jsonl."""
    loss_state: dict[str, Any] = attrs.field(factory=dict, repr=False)
    """The loss's own state: numbers, strings, lists and tensors."""
    skipped_in_a_row: int = 0
    """Steps left out since the last good one, because their gradient was not finite."""
    optimizer: Optimizer | None = attrs.field(default=None, repr=False)
    scheduler: LRScheduler | None = attrs.field(default=None, repr=False)
    scaler: GradScaler | None = attrs.field(default=None, repr=False)
    """Of fp16's loss, on a GPU."""

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for line in self.history for name, value in line.items()}

    def numbers(self) -> dict[str, Any]:
        """Return the part of the state that is JSON."""
        return {
            "step": self.step,
            "tokens_per_batch": self.tokens_per_batch,
            "epoch": self.epoch,
            "history": self.history,
            "skipped_in_a_row": self.skipped_in_a_row,
            "loss_state": {key: value for key, value in self.loss_state.items() if not isinstance(value, Tensor)},
            "scheduler": None if self.scheduler is None else self.scheduler.last_epoch,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the part of the state that is tensors, by the file that holds it; only what trains of the model."""
        return {
            "weights": {name: weight.detach() for name, weight in self._trained()},
            "optimizer": self._optimizer_tensors(),
            "loss_state": {key: value for key, value in self.loss_state.items() if isinstance(value, Tensor)},
        }

    def load(self, numbers: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        """Take over a state that `numbers` and `tensors` gave; every later step is then bitwise what it would have been."""
        self.step, self.epoch, self.history = numbers["step"], numbers["epoch"], numbers["history"]
        self.skipped_in_a_row, self.tokens_per_batch = numbers["skipped_in_a_row"], numbers["tokens_per_batch"]
        device = next(weight.device for _, weight in self._trained())
        kept = {key: value.to(device) for key, value in tensors["loss_state"].items()}
        self.loss_state = {**numbers["loss_state"], **kept}
        with torch.no_grad():
            for name, weight in self._trained():
                weight.copy_(tensors["weights"][name])
        self._load_optimizer(tensors["optimizer"])
        if self.scaler is not None and numbers["scaler"] is not None:
            self.scaler.load_state_dict(numbers["scaler"])
        if self.scheduler is not None:
            self.scheduler.last_epoch = numbers["scheduler"]
            rates = [base * fn(numbers["scheduler"]) for base, fn in zip(self.scheduler.base_lrs, self._lambdas(), strict=True)]
            for group, rate in zip(self.scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.scheduler._last_lr = rates

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def _lambdas(self) -> list[Any]:
        return list(getattr(self.scheduler, "lr_lambdas", ()))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        if self.optimizer is None:
            return {}
        return {
            f"{key}.{name}": torch.as_tensor(value).detach()
            for name, weight in self._trained()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        if self.optimizer is None:
            return
        by_name = dict(self._trained())
        for key, value in tensors.items():
            field, _, name = key.partition(".")
            weight = by_name[name]
            self.optimizer.state[weight][field] = value.to(weight.device).clone()


def random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state of every random generator that training may use: JSON and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numbers = {"python": [version, list(internal), gauss], "numpy": [str(name), int(position), int(has_gauss), float(cached)]}
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return numbers, tensors


def restore_random_state(numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Set every random generator to what `random_state` gave."""
    version, internal, gauss = numbers["python"]
    random.setstate((version, tuple(internal), gauss))
    name, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
