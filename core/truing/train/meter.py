"""Gathers the metrics of the steps between two lines of the log."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from truing.reduce import add_shares
from truing.train.run import Run
from truing.train.step import StepResult, gather_metrics


@attrs.define(eq=False)
class Meter:
    """Sums on the device; nothing is read off it before `means`."""

    sums: dict[str, Tensor] = attrs.field(factory=dict)
    seen: dict[str, int] = attrs.field(factory=dict)
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    inputs: int = 0
    slots: int = 0
    unshared: int = 0
    learning_rate: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        """Add one step."""
        add_shares(self.sums, result.metrics)
        for name in result.metrics:
            self.seen[name] = self.seen.get(name, 0) + 1
        self.steps += 1
        self.seconds += seconds
        self.tokens += result.tokens
        self.inputs += result.inputs
        self.slots += result.slots
        self.unshared += result.unshared
        self.learning_rate = result.learning_rate

    def means(self, run: Run) -> dict[str, float]:
        """Return the mean of every metric over the steps, the last learning rate, and how fast the steps were."""
        values = {name: value / self.seen[name] for name, value in gather_metrics(run, self.sums).items()}
        values["learning_rate"] = self.learning_rate
        computed = torch.tensor([self.tokens, self.inputs, self.slots, self.unshared], device=run.accelerator.device)
        tokens, inputs, slots, unshared = run.accelerator.reduce(computed, reduction="sum").tolist()
        values["tokens_per_second"] = tokens / self.seconds
        if slots:  # else the method kept nothing of what was sampled
            values["padding_fraction"] = 1 - inputs / slots
            values["shared_prefix_savings"] = 1 - inputs / unshared
        return values
