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
    """Queries and keys that lie one segment behind the other: the queries of the n-th attend to the keys of the n-th."""

    query_offsets: Tensor
    """[N + 1] int32: where each of N segments begins among the queries, and where the last one ends. None is empty."""
    key_offsets: Tensor
    """[N + 1] int32."""
    most_queries: int
    """Of a segment."""
    most_keys: int


@attrs.frozen(eq=False)
class Part:
    """Queries that attend to keys."""

    queries: slice | Tensor
    """Positions of the row, or int64 indices of them."""
    keys: slice | Tensor
    own: bool
    """Whether queries and keys are the same positions, of which each attends to those before it and to itself."""
    segments: Segments | None = None
    """Which queries attend to which keys; None is all to all."""


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
    joined: tuple[Part, ...] = attrs.field(default=(), eq=False, repr=False)
    """The parts of all trees as at most two, on the device that `to` named: the own ones, and those of branches over prompts."""
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
        """Return the layout with its parts joined, for kernels that take many segments in one call."""
        pairs = list(self._pairs())
        own, over_prompts = ([pair for pair in pairs if (pair[0] == pair[1]) is wanted] for wanted in (True, False))
        parts = [Part(slice(None), slice(None), own=True, segments=_segments(own, device))]  # the whole row, in order
        if over_prompts:
            queries, keys = (_indices(spans, device) for spans in zip(*over_prompts, strict=True))
            parts.append(Part(queries, keys, own=False, segments=_segments(over_prompts, device)))
        return attrs.evolve(self, joined=tuple(parts))

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


def _segments(pairs: Sequence[tuple[Span, Span]], device: torch.device) -> Segments:
    queries, keys = ([stop - start for start, stop in spans] for spans in zip(*pairs, strict=True))
    return Segments(_offsets(queries, device), _offsets(keys, device), max(queries), max(keys))


def _offsets(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32).to(device, non_blocking=True)


def _indices(spans: Sequence[Span], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(*span) for span in spans]).to(device, non_blocking=True)
