"""Every rank's share of a step."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.core.trees import random_trees
from truing.train.micro_batches import cut


def run(rank, ranks, budget):
    return SimpleNamespace(
        accelerator=SimpleNamespace(process_index=rank, num_processes=ranks, device=torch.device("cpu")),
        state=SimpleNamespace(tokens_per_batch=budget),
        policy=SimpleNamespace(layout="shared_prefix", parameters=nn.Linear(1, 1).parameters),
    )


@given(count=st.integers(1, 20), ranks=st.integers(1, 8), budget=st.integers(1, 100))
def test_ranks_share_all_and_none_is_idle(count, ranks, budget):
    trees = random_trees(count)
    shares = [cut(run(rank, ranks, budget), trees) for rank in range(ranks)]
    counted = [tree.sample_id for share in shares for batch in share if batch.counts for tree in batch.trees]
    assert sorted(counted) == list(range(count))
    assert all(share for share in shares)
    # what a rank borrows, so as to take part, is as little as there is
    smallest = min(tree.num_tokens for tree in trees)
    borrowed = [batch for share in shares for batch in share if not batch.counts]
    assert all([tree.num_tokens for tree in batch.trees] == [smallest] for batch in borrowed)
