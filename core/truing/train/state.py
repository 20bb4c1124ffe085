"""The one state of a run: what a step changes and what the next one depends on."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from truing.train.checkpoint import DamagedError
from truing.train.run_dir import METRICS

UNREADABLE = (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)
"""What reading a state that is sealed, and yet not one of ours, may raise."""


def _kind(thing: object) -> str:
    return f"<{type(thing).__name__}>"


@attrs.define(eq=False, kw_only=True)
class TrainState:
    """A run in progress or finished. The data's order is a function of seed and step, so `step` is its position too."""

    # what a notebook shows of a state fits on its screen: no module, token table or history in full
    model: PreTrainedModel | PeftModel = attrs.field(repr=_kind)
    """The policy; trained, and in evaluation mode, when the run is done."""
    heads: Mapping[str, nn.Module] = attrs.field(factory=dict, repr=False)
    """What trains beside the model: `score_head`, what scores completions; `value_head` or a whole `critic`, which value tokens."""
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
    metrics: dict[str, float] = attrs.field(factory=dict, repr=False)
    """The last value of every metric."""
    loss_state: dict[str, Any] = attrs.field(factory=dict, repr=False)
    """The loss's own state: numbers, strings, lists and tensors."""
    skipped_in_a_row: int = 0
    """Steps left out since the last good one."""
    skipped_steps: int = 0
    """Steps left out in the whole run, because something in them was not finite or their gradient was a spike."""
    recent_norms: list[float] = attrs.field(factory=list, repr=False)
    """Gradient norms of the last good steps, which a spike is a spike against."""
    references: dict[str, str] = attrs.field(factory=dict, repr=False)
    """Hashes of the precomputed references' log-probabilities, by the names of the files that hold them."""
    optimizer: Optimizer | None = attrs.field(default=None, repr=False)
    scheduler: LRScheduler | None = attrs.field(default=None, repr=False)
    scaler: GradScaler | None = attrs.field(default=None, repr=False)
    """Of fp16's loss, on a GPU."""

    @property
    def score_head(self) -> nn.Linear | None:
        """What scores completions, [1, H]; None where the method reads no scores."""
        head = self.heads.get("score_head")
        return head if isinstance(head, nn.Linear) else None

    @property
    def history(self) -> list[dict[str, float]]:
        """Every line of metrics.jsonl so far, read from the file."""
        path = self.output_dir / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def numbers(self) -> dict[str, Any]:
        """Return the part of the state that is JSON."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "loss_state": {key: value for key, value in self.loss_state.items() if not isinstance(value, Tensor)},
            "scheduler": None if self.scheduler is None else self.scheduler.last_epoch,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def weights(self) -> dict[str, Tensor]:
        """Return what trains of the model, by name; this rank's part where weights are spread over ranks."""
        return {name: _local(weight) for name, weight in self._trained()}

    def moments(self) -> list[Tensor]:
        """Return every tensor of the optimiser's state; their names take longer to make than a step has for reading them."""
        states = [] if self.optimizer is None else self.optimizer.state.values()
        return [_local(torch.as_tensor(value)) for fields in states for value in fields.values()]

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's state, as `<field>.<weight's name>`; this rank's part of it."""
        if self.optimizer is None:
            return {}
        return {
            f"{key}.{name}": _local(torch.as_tensor(value))
            for name, weight in self._trained()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }

    def loss_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the loss's own state."""
        return {key: value for key, value in self.loss_state.items() if isinstance(value, Tensor)}

    def load(
        self, numbers: Mapping[str, Any], weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], loss: Mapping[str, Tensor]
    ) -> None:
        """Take over a state; every later step is then bitwise what it would have been.

        Raises DamagedError, having changed nothing, where a tensor is missing, has another shape or was never part of such a state.
        """
        moments = self._moments(optimizer)
        check_tensors("weights", weights, self.weights())
        for name in _PLAIN:
            setattr(self, name, numbers[name])
        device = next(weight.device for _, weight in self._trained())
        self.loss_state = {
            **self.loss_state,
            **numbers["loss_state"],
            **{key: value.to(device).clone() for key, value in loss.items()},
        }
        with torch.no_grad():
            for name, weight in self.weights().items():
                weight.copy_(weights[name])
        if self.optimizer is not None:
            for weight, fields in moments.items():
                self.optimizer.state[weight] = fields
        if self.scaler is not None and numbers["scaler"] is not None:
            self.scaler.load_state_dict(numbers["scaler"])
        if self.scheduler is not None:
            self._load_scheduler(self.scheduler, numbers["scheduler"])

    def _load_scheduler(self, scheduler: LRScheduler, step: int) -> None:
        scheduler.last_epoch = step
        lambdas: list[Any] = list(getattr(scheduler, "lr_lambdas", ()))
        rates = [base * fn(step) for base, fn in zip(scheduler.base_lrs, lambdas, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        heads = [named for name, head in self.heads.items() for named in head.named_parameters(name)]
        return [(name, weight) for name, weight in (*self.model.named_parameters(), *heads) if weight.requires_grad]

    def _moments(self, tensors: Mapping[str, Tensor]) -> dict[torch.nn.Parameter, dict[str, Tensor]]:
        """Return the optimiser's state by weight. Raises DamagedError for one that it cannot have."""
        by_name = dict(self._trained())
        moments: dict[torch.nn.Parameter, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            field, _, name = key.partition(".")
            if name not in by_name:
                raise DamagedError(f"optimizer.safetensors has {key!r}, which belongs to no weight that trains")
            weight = by_name[name]
            if value.dim() and value.shape != _local(weight).shape:
                raise DamagedError(f"optimizer.safetensors: {key!r} is {tuple(value.shape)}, its weight {tuple(weight.shape)}")
            moments.setdefault(weight, {})[field] = _like(weight, value.to(weight.device).clone())
        fields = {frozenset(fields) for fields in moments.values()}
        if len(fields) > 1:
            raise DamagedError("optimizer.safetensors lacks a part of the optimiser's state")
        return moments


_PLAIN = ("step", "epoch", "tokens_per_batch", "metrics", "skipped_in_a_row", "skipped_steps", "recent_norms", "references")
"""Fields that are JSON as they are."""


def _local(tensor: Tensor) -> Tensor:
    local = tensor.detach()
    return local.to_local() if isinstance(local, DTensor) else local


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a rank's part of an optimiser's tensor as the weight is: spread over ranks where that is."""
    if not isinstance(weight.data, DTensor) or not value.dim():
        return value
    return DTensor.from_local(value, weight.data.device_mesh, weight.data.placements, shape=weight.shape, stride=weight.stride())


def check_tensors(file: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise DamagedError unless a file has the tensors that are wanted, in their shapes."""
    for name in sorted(found.keys() ^ wanted.keys()):
        raise DamagedError(f"{file} {'has' if name in found else 'lacks'} {name!r}")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise DamagedError(f"{file}: {name!r} is {tuple(found[name].shape)} instead of {tuple(tensor.shape)}")


RandomState = tuple[dict[str, Any], dict[str, Tensor]]
"""Of every random generator that training may use: JSON and tensors."""


def random_state() -> RandomState:
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
