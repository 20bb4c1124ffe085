"""Where a step's trees come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from torch import Tensor

from truing.data.tree import PromptTree, Trees
from truing.train.order import DataOrder

if TYPE_CHECKING:
    from truing.train.run import Run


class Source(Protocol):
    """Gives the trees of every step. What it holds between steps, such as completions not trained on yet, is checkpointed."""

    def open(self, run: Run) -> None:
        """Open what it needs to give trees; `close` is called afterwards, whatever happens."""

    def close(self) -> None:
        """Close what was opened; nothing, where nothing was."""

    def trees(self, run: Run) -> Sequence[PromptTree]:
        """Return the trees of the run's next step, of all ranks together; asked for once a step, in order."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What is measured of these trees beside the loss, the same on every rank."""

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

    def open(self, run: Run) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def trees(self, run: Run) -> list[PromptTree]:
        """Return the step's samples."""
        return [self.data[index] for index in self.order.samples(run.state.step)]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def numbers(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Do nothing."""
