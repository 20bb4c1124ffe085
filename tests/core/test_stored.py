"""Trees that are stored are the trees that were."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.data.stored import stored_trees, tree_numbers, tree_tensors
from truing.data.tree import Branch, PromptTree, Sampled

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(tuple)
rewards = st.tuples(st.floats(-1, 1), st.just(float("nan")) | st.floats(-1e30, 1e30))


@st.composite
def branches(draw, sampled):
    tokens = draw(ids)
    mask = tuple(draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))
    known = None
    if sampled:
        columns = {name: torch.rand(sum(mask)) for name in ("advantages", "returns")}
        advantage = draw(st.none() | st.floats(-3, 3))
        known = Sampled(columns=columns, rewards=draw(rewards), truncated=draw(st.booleans()), advantage=advantage)
    return Branch(
        token_ids=tokens,
        loss_mask=mask,
        role=draw(st.sampled_from(["completion", "chosen", "mismatched"])),
        label=draw(st.none() | st.booleans()),
        rank=draw(st.none() | st.integers(0, 3)),
        sampled=known,
    )


@st.composite
def trees(draw):
    sampled = draw(st.booleans())
    prompt = draw(ids)
    mask = draw(st.booleans())
    return [
        PromptTree(
            prompt_ids=prompt,
            prompt_mask=(False, *(True,) * (len(prompt) - 1)) if mask and len(prompt) > 1 else (),
            branches=tuple(draw(st.lists(branches(sampled), min_size=1, max_size=3))),
            sample_id=number,
            margin=draw(st.none() | st.floats(0, 2)),
        )
        for number in range(draw(st.integers(0, 3)))
    ]


@settings(deadline=None)
@given(trees())
def test_what_is_packed_comes_back(stored):
    found = stored_trees(json.loads(json.dumps(tree_numbers(stored))), tree_tensors(stored))
    assert found == stored
    for one, other in zip(_known(found), _known(stored), strict=True):
        plain = attrs.filters.exclude("columns")
        assert str(attrs.asdict(one, filter=plain)) == str(attrs.asdict(other, filter=plain))
        assert one.columns.keys() == other.columns.keys()
        assert all(torch.equal(one.columns[name], other.columns[name]) for name in one.columns)


def _known(some):
    return [branch.sampled for tree in some for branch in tree.branches if branch.sampled is not None]


def test_something_else_is_refused():
    trees = [PromptTree(prompt_ids=(1, 2), branches=(), sample_id=0)]
    with pytest.raises((RuntimeError, ValueError)):
        stored_trees(tree_numbers(trees), {**tree_tensors(trees), "token_ids": torch.tensor([1])})
