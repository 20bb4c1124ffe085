"""What a child does to itself before its run begins: other sources, faults at a step, slow disks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

import truing.train.loop
import truing.train.setup
from tests.faults.runs import beside
from truing.data.tree import PromptTree, Trees
from truing.train.checkpoint import store
from truing.train.order import DataOrder
from truing.train.run import Run

BUFFERED = 3
"""Steps that a buffer is filled for."""


@attrs.define(eq=False)
class BufferedSource:
    """Stands for rollouts: trees of several steps drawn at once, with the generator that training draws from, and handed out."""

    data: Trees
    per_step: int
    _held: Tensor = attrs.field(factory=lambda: torch.empty(0, dtype=torch.int64))
    _used: int = 0

    def open(self, run: Run) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def trees(self, run: Run) -> list[PromptTree]:
        """Return the step's trees, drawing new ones when none are left."""
        if self._used == len(self._held):
            self._held, self._used = torch.randint(len(self.data), (BUFFERED * self.per_step,)), 0
        self._used += self.per_step
        return [self.data[index] for index in self._held[self._used - self.per_step : self._used].tolist()]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def numbers(self) -> dict[str, Any]:
        """Return how many were handed out."""
        return {"used": self._used}

    def tensors(self) -> dict[str, Tensor]:
        """Return what is held."""
        return {"held": self._held}

    def load(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Hold what was saved."""
        self._held, self._used = tensors["held"], numbers["used"]


def buffered() -> None:
    """Let the runs of this process draw their trees into a buffer."""

    def make(trees: Trees, order: DataOrder, plan: object = None) -> BufferedSource:
        return BufferedSource(trees, order.per_lot)

    truing.train.setup.make_source = make


def noting_prompts() -> None:
    """Write down beside the run directory which prompts a step was on, when it has changed the weights."""
    real = truing.train.loop.train_step

    def wrapped(run: Run, trees: Any) -> Any:
        result = real(run, trees)
        with beside(run.run_dir.path).open("a") as file:
            file.write(json.dumps({"step": run.state.step + 1, "prompts": [tree.sample_id for tree in trees]}) + "\n")
        return result

    truing.train.loop.train_step = wrapped


def in_every_step(act: Callable[[Run], object]) -> None:
    """Do something just before every step."""
    real = truing.train.loop.train_step

    def wrapped(run: Run, trees: Any) -> Any:
        act(run)
        return real(run, trees)

    truing.train.loop.train_step = wrapped


def at_step(step: int, act: Callable[[Run], object]) -> None:
    """Do something just before a step, counted from 0."""
    in_every_step(lambda run: act(run) if run.state.step == step else None)


def slow_disk(seconds: float, names: str = "") -> Callable[[], None]:
    """Let files of a checkpoint whose names begin so take some time; return a function that ends this."""
    real = store.write_file

    def write_file(path: Path, *rest: Any) -> Any:
        if path.name.startswith(names):
            time.sleep(seconds)
        return real(path, *rest)

    def mend() -> None:
        store.write_file = real

    store.write_file = write_file
    return mend
