"""Cuts a step's prompt trees into micro-batches by token budget."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from truing.data.layouts import Forward
from truing.data.tree import PromptTree


def pack(trees: Sequence[PromptTree], budget: int, forward: Forward) -> list[list[PromptTree]]:
    """Return micro-batches of at most `budget` computed tokens each; a tree larger than the budget gets one of its own.

    Best-fit decreasing for rows with shared prompts; neighbours by length for padded rows. Which trees share a micro-batch changes
    no loss and no gradient.
    """
    if forward == "shared_prefix":
        return _best_fit(sorted(trees, key=lambda tree: -tree.num_tokens), budget)
    if forward == "padded":
        return _neighbours(sorted(trees, key=lambda tree: -_longest(tree)), budget, _padded_slots)
    by_prompt = sorted(trees, key=lambda tree: (-len(tree.prompt_ids), -_longest(tree)))
    return _neighbours(by_prompt, budget, _cached_slots)


def _longest(tree: PromptTree) -> int:
    return len(tree.prompt_ids) + max(len(branch.token_ids) for branch in tree.branches)


def _padded_slots(trees: Sequence[PromptTree]) -> int:
    return sum(len(tree.branches) for tree in trees) * max(map(_longest, trees))


def _cached_slots(trees: Sequence[PromptTree]) -> int:
    prompts = len(trees) * max(len(tree.prompt_ids) for tree in trees)
    longest = max(len(branch.token_ids) for tree in trees for branch in tree.branches)
    return prompts + sum(len(tree.branches) for tree in trees) * longest


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


def _neighbours(trees: Sequence[PromptTree], budget: int, slots: Callable[[Sequence[PromptTree]], int]) -> list[list[PromptTree]]:
    bins: list[list[PromptTree]] = []
    for tree in trees:
        if bins and slots([*bins[-1], tree]) <= budget:
            bins[-1].append(tree)
        else:
            bins.append([tree])
    return bins
