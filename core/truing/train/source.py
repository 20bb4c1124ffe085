"""Where a step's trees come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
from torch import Tensor

from truing.data.tree import PromptTree, Trees
from truing.train.order import DataOrder


class Source(Protocol):
    """Gives the trees of every step. What it holds between steps, such as completions not trained on yet, is checkpointed."""

    def trees(self, step: int) -> Sequence[PromptTree]:
        """Return the trees of a step (counted from 0) of all ranks together; asked for once a step, in order."""

    def numbers(self) -> dict[str, Any]:
        """Return the part of what it holds that is JSON."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of what it holds that is tensors."""

    def load(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Hold what `numbers` and `tensors` gave."""


@attrs.frozen(eq=False)
class DatasetSource:
    """Collected data in the order that seed and step say: nothing is held between steps."""

    data: Trees
    order: DataOrder

    def trees(self, step: int) -> list[PromptTree]:
        """Return the step's samples."""
        return [self.data[index] for index in self.order.samples(step)]

    def numbers(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Do nothing."""
