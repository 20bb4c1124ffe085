"""Cuts a step's prompt trees into micro-batches by token budget."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from truing.data.batch import Forward
from truing.data.tree import PromptTree


def pack(trees: Sequence[PromptTree], budget: int, forward: Forward) -> list[list[PromptTree]]:
    """Return micro-batches of at most `budget` computed tokens each; a tree larger than the budget gets one of its own.

    Best-fit decreasing for rows with shared prompts; for padded rows, neighbours by length. Which trees share a micro-batch
    changes no loss and no gradient.
    """
    by_size = sorted(trees, key=lambda tree: -_size(tree, forward))
    return _neighbours(by_size, budget) if forward == "padded" else _best_fit(by_size, budget)


def _size(tree: PromptTree, forward: Forward) -> int:
    return tree.num_tokens if forward == "shared_prefix" else _longest(tree)


def _longest(tree: PromptTree) -> int:
    return len(tree.prompt_ids) + max(len(branch.token_ids) for branch in tree.branches)


def _best_fit(trees: Sequence[PromptTree], budget: int) -> list[list[PromptTree]]:
    bins: list[list[PromptTree]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for tree in trees:
        place = bisect_left(rooms, (tree.num_tokens, 0))
        if place < len(rooms):
            free, index = rooms.pop(place)
            bins[index].append(tree)
        else:
            free, index = budget, len(bins)
            bins.append([tree])
        insort(rooms, (free - tree.num_tokens, index))
    return bins


def _neighbours(trees: Sequence[PromptTree], budget: int) -> list[list[PromptTree]]:
    bins: list[list[PromptTree]] = []
    rows = width = 0
    for tree in trees:  # longest first, so that the first of a batch sets its width
        if bins and (rows + len(tree.branches)) * width <= budget:
            bins[-1].append(tree)
            rows += len(tree.branches)
        else:
            bins.append([tree])
            rows, width = len(tree.branches), _longest(tree)
    return bins
