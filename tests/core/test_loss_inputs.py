"""What LossInputs derives from its fields; numbers are derived by hand."""

from __future__ import annotations

from math import isnan, nan

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.loss import Layout, LossInputs, Needs
from truing.testing import fake_inputs


def make(lengths):
    counts = torch.tensor(lengths)
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=torch.zeros(sum(lengths)),
        sequence_ids=torch.arange(len(lengths)).repeat_interleave(counts),
        tree_ids=torch.arange(len(lengths)),
        lengths=counts,
    )


def test_sums_to_go():
    """1, 2, 4 | 8 | 16, 32 with 1/2: 4; 2 + 2 = 4; 1 + 2 = 3 | 8 | 32; 16 + 16 = 32. With 1: 7, 6, 4 | 8 | 48, 32."""
    inputs, values = make([3, 1, 2]), torch.tensor([1.0, 2, 4, 8, 16, 32])
    assert inputs.to_go(values, 0.5).tolist() == [3, 4, 4, 8, 32, 32]
    assert inputs.to_go(values).tolist() == [7, 6, 4, 8, 48, 32]
    assert inputs.to_go(values, 0.0).tolist() == values.tolist()
    assert values.tolist() == [1, 2, 4, 8, 16, 32]


def test_there_may_be_branches_without_tokens():
    assert make([0, 2, 0]).to_go(torch.tensor([1.0, 1.0])).tolist() == [2, 1]
    assert make([0]).to_go(torch.zeros(0)).tolist() == []


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), discount=st.floats(0, 1), seed=st.integers(0, 99))
def test_sums_to_go_are_those_of_the_recursion(lengths, discount, seed):
    inputs = make(lengths)
    values = torch.randn(sum(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = []
    for branch in values.split(lengths):
        found = [0.0]
        for value in reversed(branch.tolist()):
            found.append(value + discount * found[-1])
        expected += found[:0:-1]
    assert inputs.to_go(values, discount).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_weighted_rewards_are_sums_of_those_that_apply():
    """Weights 2 and 3: 2 + 30 = 32; 30 alone; nothing at all; 0 is a reward."""
    rewards = torch.tensor([[1.0, 10.0], [nan, 10.0], [nan, nan], [0.0, nan]])
    inputs = attrs.evolve(make([1, 1, 1, 1]), rewards=rewards, reward_weights=torch.tensor([2.0, 3.0]))
    first, second, third, fourth = inputs.weighted_rewards.tolist()
    assert (first, second, fourth) == (32, 30, 0) and isnan(third)


def test_weighted_rewards_must_be_needed():
    inputs = fake_inputs(Layout.ROLLOUT, needs=Needs.VALUES)
    with pytest.raises(ValueError, match="`rollout_needs` does not name Needs.REWARDS; add it"):
        inputs.sum(inputs.weighted_rewards)


def test_all_branches_are_kept_unless_it_is_said():
    inputs = make([0, 2])
    assert inputs.kept.tolist() == [True, True]
    assert attrs.evolve(inputs, keep=torch.tensor([False, True])).kept.tolist() == [False, True]


@pytest.mark.parametrize("layout", [Layout.PAIRED, Layout.ROLLOUT])
def test_lengths_that_the_host_knows_change_nothing(layout):
    inputs = fake_inputs(layout, trees=4, seed=3)
    known = attrs.evolve(inputs, _on_host=(inputs.lengths, tuple(inputs.lengths.tolist())))
    assert known.known_lengths == tuple(inputs.lengths.tolist())
    assert attrs.evolve(known, lengths=inputs.lengths.flip(0)).known_lengths is None
    assert torch.equal(known.to_go(inputs.token_logps, 0.5), inputs.to_go(inputs.token_logps, 0.5))
    if layout is Layout.PAIRED:
        assert torch.equal(known.chosen.token_logps, inputs.chosen.token_logps)
        assert torch.equal(known.rejected.token_logps, inputs.rejected.token_logps)
