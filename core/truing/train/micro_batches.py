"""A rank's share of a step, cut by token budget."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from truing.data.packing import pack
from truing.data.tree import PromptTree
from truing.model.spread import is_spread
from truing.train.run import Run


@attrs.frozen
class MicroBatch:
    """Trees of one forward."""

    trees: list[PromptTree]
    counts: bool = True
    """False for one that is computed only because ranks must take part together; it adds nothing."""

    @property
    def weight(self) -> float:
        """Factor of its loss, gradient and metrics."""
        return float(self.counts)


def cut(run: Run, trees: Sequence[PromptTree]) -> list[MicroBatch]:
    """Return this rank's micro-batches of the trees of all ranks; all ranks must call this together.

    Every rank has one at least, and as many as any other where weights are sharded, for each forward gathers them from all.
    """
    accelerator = run.accelerator
    mine = trees[accelerator.process_index :: accelerator.num_processes]
    cut_up = [MicroBatch(batch) for batch in pack(mine, run.state.tokens_per_batch, run.policy.layout)]
    needed = max(1, len(cut_up))
    if is_spread(run.policy):
        needed = int(accelerator.gather(torch.tensor([needed], device=accelerator.device)).max())
    smallest = min(trees, key=lambda tree: tree.num_tokens)
    return cut_up + [MicroBatch([smallest], counts=False)] * (needed - len(cut_up))
