"""Micro-batches by token budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.data.packing import pack


@given(
    count=st.integers(1, 30),
    seed=st.integers(0, 99),
    budget=st.integers(1, 200),
    forward=st.sampled_from(["shared_prefix", "cached", "padded"]),
)
def test_every_tree_once_and_within_budget(count, seed, budget, forward):
    trees = random_trees(count, seed=seed)
    bins = pack(trees, budget, forward)
    assert sorted(tree.sample_id for trees in bins for tree in trees) == list(range(count))
    for trees_of_bin in bins:
        assert len(trees_of_bin) == 1 or collate(trees_of_bin, forward).slots <= budget


def test_packing_is_deterministic():
    trees = random_trees(20)
    assert pack(trees, 64, "shared_prefix") == pack(trees, 64, "shared_prefix")


def test_rows_with_shared_prompts_have_no_padding():
    trees = random_trees(6)
    # a branch's last token is no input
    assert collate(trees, "shared_prefix").slots == sum(tree.num_tokens - len(tree.branches) for tree in trees)
