"""The order of the data: a function of seed and step, so that a resumed run continues where it was."""

from __future__ import annotations

import math
from functools import lru_cache

import attrs
import torch
from torch import Tensor


@attrs.frozen
class DataOrder:
    """Shuffles `size` samples anew each epoch and cuts them into lots of `per_lot`, each for `steps_per_lot` steps.

    An epoch's last lot may be smaller. Collected data has a lot for each step; completions are sampled for a lot of prompts, which
    may serve several.
    """

    size: int
    per_lot: int
    seed: int
    steps_per_lot: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the data."""
        return math.ceil(self.size / self.per_lot) * self.steps_per_lot

    def total_steps(self, num_epochs: float, max_steps: int | None) -> int:
        """Return the optimiser steps of the run, at least one."""
        return max_steps or max(1, math.ceil(self.steps_per_epoch * num_epochs))

    def samples(self, step: int) -> list[int]:
        """Return the samples of the lot that a step (counted from 0) belongs to, of all ranks together."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        start = in_epoch // self.steps_per_lot * self.per_lot
        samples: list[int] = _permutation(self.size, self.seed, epoch)[start : start + self.per_lot].tolist()
        return samples

    def epoch_after(self, steps: int) -> float:
        """Return how many passes over the data `steps` steps make."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs + min(1.0, rest * self.per_lot / self.steps_per_lot / self.size)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(size, generator=generator)
