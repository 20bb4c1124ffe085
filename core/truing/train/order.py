"""The order of the data: a function of seed and step, so that a resumed run continues where it was."""

from __future__ import annotations

import math
from functools import lru_cache

import attrs
import torch
from torch import Tensor


@attrs.frozen
class DataOrder:
    """Shuffles `size` samples anew each epoch and cuts them into steps of `per_step`; an epoch's last step may be smaller."""

    size: int
    per_step: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the data."""
        return math.ceil(self.size / self.per_step)

    def total_steps(self, num_epochs: float, max_steps: int | None) -> int:
        """Return the optimiser steps of the run, at least one."""
        return max_steps or max(1, math.ceil(self.steps_per_epoch * num_epochs))

    def samples(self, step: int) -> list[int]:
        """Return the samples of a step (counted from 0) of all ranks together."""
        epoch, index = divmod(step, self.steps_per_epoch)
        samples: list[int] = _permutation(self.size, self.seed, epoch)[index * self.per_step : (index + 1) * self.per_step].tolist()
        return samples

    def epoch_after(self, steps: int) -> float:
        """Return how many passes over the data `steps` steps make."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs + min(1.0, rest * self.per_step / self.size)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(size, generator=generator)
