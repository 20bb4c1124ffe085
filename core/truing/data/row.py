"""A row of prompt trees: where they lie in it, and which of its positions attend to which."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs
import torch
from torch import Tensor, nn

Span = tuple[int, int]
"""A half-open range of positions."""


@attrs.frozen
class TreeSpan:
    """Where a tree lies in its row: its prompt, and each branch's inputs."""

    prompt: Span
    branches: tuple[Span, ...]

    @property
    def stop(self) -> int:
        """Where the tree ends."""
        return self.branches[-1][1] if self.branches else self.prompt[1]

    @property
    def reach(self) -> int:
        """Positions that its longest branch attends to, its prompt among them."""
        start, stop = self.prompt
        return stop - start + max((end - begin for begin, end in self.branches), default=0)


@attrs.frozen(eq=False)
class Segments:
    """A row as N sequences one behind the other: each position attends to those before it in its own sequence, and to itself.

    A prompt is a sequence, and so is what follows a prompt together with that prompt, of which only the positions that follow are
    queries. Queries are the row's positions in order.
    """

    query_offsets: Tensor
    """[N + 1] int32: where the queries of each sequence begin, and where those of the last one end. No sequence has none."""
    key_offsets: Tensor
    """[N + 1] int32: the same of the keys."""
    most_queries: int
    """Of a sequence."""
    most_keys: int
    keys: Tensor | None
    """[K] int64, the row's position of every key; None where they are the row's positions in order."""


@attrs.frozen(eq=False)
class Part:
    """Queries that attend to keys, ranges of the row."""

    queries: slice
    keys: slice
    own: bool
    """Whether queries and keys are the same positions, of which each attends to those before it and to itself; else all to all."""
    segments: Segments | None = None
    """Which of them attend to which where that is more than one sequence."""
    window: int | None = None
    """Positions that a position sees, itself included; None is all."""


class KeptKeys:
    """Keys and values of a row, by attention module, for branches that are computed after it and without gradient."""

    def __init__(self) -> None:
        self._by_module: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._open = True

    def put(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep a module's, [1, heads, S, size] each; not when all has been read, as where a layer is computed again."""
        if self._open:
            self._by_module[module] = key.detach(), value.detach()

    def take(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return a module's, which are not kept any longer."""
        self._open = False
        return self._by_module.pop(module)


@attrs.frozen
class RowLayout:
    """The trees of one row, in order; every position belongs to exactly one prompt or branch."""

    trees: tuple[TreeSpan, ...]
    segments: Segments | None = attrs.field(default=None, eq=False, repr=False)
    """All trees, on the device that `to` named."""
    kept: KeptKeys | None = attrs.field(default=None, eq=False, repr=False)
    """What is to keep the row's keys and values, where a later row's branches attend to them."""

    @property
    def sizes(self) -> list[int]:
        """How many positions each prompt and each branch has, in the order of the row."""
        return [stop - start for tree in self.trees for start, stop in (tree.prompt, *tree.branches)]

    @property
    def reach(self) -> int:
        """Positions that the longest branch of all attends to."""
        return max(tree.reach for tree in self.trees)

    def parts(self) -> Iterator[Part]:
        """Yield ranges: of each tree the own parts, which have every position once, then all branches over their prompt."""
        return (Part(slice(*queries), slice(*keys), own=queries == keys) for queries, keys in self._pairs())

    def to(self, device: torch.device) -> RowLayout:
        """Return the layout with its segments, for kernels that take many in one call."""
        queries, keys = zip(*self._sequences(), strict=True)
        of_queries, of_keys = ([sum(stop - start for start, stop in spans) for spans in side] for side in (queries, keys))
        shared = None if queries == keys else torch.cat([torch.arange(*span) for spans in keys for span in spans])
        segments = Segments(
            query_offsets=_offsets(of_queries, device),
            key_offsets=_offsets(of_keys, device),
            most_queries=max(of_queries),
            most_keys=max(of_keys),
            keys=None if shared is None else shared.to(device, non_blocking=True),
        )
        return attrs.evolve(self, segments=segments)

    def _sequences(self) -> Iterator[tuple[tuple[Span, ...], tuple[Span, ...]]]:
        """Yield the queries and the keys of each sequence, in the order of the row, none of them empty."""
        for tree in self.trees:
            if len(tree.branches) < 2:
                yield ((tree.prompt[0], tree.stop),), ((tree.prompt[0], tree.stop),)
                continue
            yield (tree.prompt,), (tree.prompt,)
            yield from (((branch,), (tree.prompt, branch)) for branch in tree.branches if branch[0] < branch[1])

    def _pairs(self) -> Iterator[tuple[Span, Span]]:
        """Yield queries and the keys that they attend to, none of them empty; a prompt and its only branch are one sequence."""
        for tree in self.trees:
            alone = len(tree.branches) < 2
            spans = [(tree.prompt[0], tree.stop)] if alone else [tree.prompt, *tree.branches]
            yield from ((own, own) for own in spans if own[0] < own[1])
            if not alone and tree.prompt[1] < tree.stop:
                yield (tree.prompt[1], tree.stop), tree.prompt


@attrs.frozen
class LaterRow:
    """A row of branches alone, whose prompts lie in an earlier row: each attends to its prompt's keys there and to itself."""

    trees: tuple[TreeSpan, ...]
    """A prompt is a range of the earlier row, a branch one of this."""
    kept: KeptKeys | None = attrs.field(default=None, eq=False, repr=False)
    """The earlier row's keys and values."""

    @property
    def reach(self) -> int:
        """Positions that the longest branch of all attends to."""
        return max(tree.reach for tree in self.trees)


def _offsets(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32).to(device, non_blocking=True)
