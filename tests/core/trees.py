"""Prompt trees for tests of the core."""

from __future__ import annotations

import random

from truing.data.tree import Branch, PromptTree


def random_tree(seed: int, *, sample_id: int = 0, vocab: int = 250, branches: int = 2, longest: int = 12) -> PromptTree:
    """A tree of random tokens; some completion tokens are not counted, and a branch may be of one token."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(4, vocab) for _ in range(draw.randint(low, high)))

    made = []
    for index in range(branches):
        ids = tokens(1, longest)
        mask = tuple(position == 0 or draw.random() < 0.9 for position in range(len(ids)))
        made.append(Branch(token_ids=ids, loss_mask=mask, role=("chosen", "rejected")[index % 2]))
    return PromptTree(prompt_ids=tokens(2, longest), branches=tuple(made), sample_id=sample_id)


def random_trees(count: int, *, seed: int = 0, **options: int) -> list[PromptTree]:
    """Several trees with different lengths."""
    return [random_tree(seed * 1000 + index, sample_id=index, **options) for index in range(count)]
