"""Online DPO: which completions are paired, on rewards given by hand; the loss is that of `dpo`."""

from __future__ import annotations

from math import nan

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import Layout, LossInputs, Needs
from truing.testing import check_loss, fake_inputs
from truing_dpo import DPO, OnlineDPO

ALL = OnlineDPO(pairs="all")
groups = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, nan]), min_size=1, max_size=5), min_size=1, max_size=4)


def rollouts(*rewards, weights=None, **fields) -> LossInputs:
    """Completions of one token each; of each prompt their rewards, a number or one of each reward."""
    flat = [reward if isinstance(reward, tuple) else (reward,) for group in rewards for reward in group]
    count = len(flat)
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=torch.full((count,), nan),
        sequence_ids=torch.arange(count),
        tree_ids=torch.arange(len(rewards)).repeat_interleave(torch.tensor([len(group) for group in rewards])),
        lengths=torch.ones(count, dtype=torch.int64),
        rewards=torch.tensor(flat, dtype=torch.float64),
        reward_weights=torch.tensor(weights or [1.0] * len(flat[0]), dtype=torch.float64),
        **fields,
    )


def pairs_of(method, inputs):
    return method.advantages(inputs).pairs.tolist()


def test_best_and_worst():
    """Branches 0 to 2 and 3 to 4: the greatest is chosen and the least rejected, whatever lies between."""
    found = OnlineDPO().advantages(rollouts([0.2, 0.9, 0.1], [1.0, 3.0]))
    assert found.pairs.tolist() == [[1, 2], [4, 3]] and found.pairs.dtype is torch.int64
    assert found.values.tolist() == [0, 1, -1, -1, 1]
    assert found.metrics["objective/scores_margin"].values.tolist() == pytest.approx([0.8, 2.0])
    assert found.metrics["frac_tied_prompts"].values.tolist() == [0, 0]


def test_all_pairs_are_those_of_unequal_reward():
    """0.5 twice beats 0.1 and 0.5 does not beat 0.5; 0.9 beats the other three. Wins less losses: 0, 0, 3, -3."""
    found = ALL.advantages(rollouts([0.5, 0.5, 0.9, 0.1], [1.0, 0.0]))
    assert sorted(found.pairs.tolist()) == [[0, 3], [1, 3], [2, 0], [2, 1], [2, 3], [4, 5]]
    assert found.values.tolist() == [0, 0, 3, -3, 1, -1]


def test_the_first_of_equal_ones_is_taken():
    assert pairs_of(OnlineDPO(), rollouts([1.0, 0.0, 0.0, 1.0])) == [[0, 1]]


@pytest.mark.parametrize("method", [OnlineDPO(), ALL], ids=["best_worst", "all"])
def test_a_tie_is_no_pair_and_is_counted(method):
    found = method.advantages(rollouts([0.1] * 8, [1.0], [nan, 2.0], [nan, nan]))
    assert found.pairs.shape == (0, 2) and not found.values.any()
    assert found.metrics["frac_tied_prompts"].values.tolist() == [1, 1, 1, 1]
    assert found.metrics["objective/scores_margin"].values.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("method", [OnlineDPO(), ALL], ids=["best_worst", "all"])
@pytest.mark.parametrize(("last", "other"), [(0.7, (0.0, 0.0, 1.0)), (-0.7, (0.0, 0.0, 0.0))], ids=["0.7", "0"])
def test_a_difference_that_is_rounding_is_a_tie(method, last, other):
    """0.6 + 0.1 is 0.7, and 0.6 + 0.1 - 0.7 is 0, if not in single precision; 0.6 is less than 0.6001 all the same."""
    first = (1.0, 1.0, 0.0 if last > 0 else 1.0)
    made = rollouts([first, other], [(1.0, 0.0, 0.0), (1.0, 0.001, 0.0)], weights=[0.6, 0.1, last])
    single = attrs.evolve(made, rewards=made.rewards.float(), reward_weights=made.reward_weights.float())
    assert single.weighted_rewards[0] != single.weighted_rewards[1]
    found = method.advantages(single)
    assert found.pairs.tolist() == [[3, 2]]
    assert found.metrics["frac_tied_prompts"].values.tolist() == [1, 0]
    assert found.metrics["objective/scores_margin"].values.tolist() == pytest.approx([0, 1e-4], abs=1e-7)


def test_it_is_the_weighted_sum_that_ranks():
    """2 x 1 + 0.5 x 0 = 2; 2 x 0 + 0.5 x 8 = 4; 2 x 1.5 alone is 3."""
    inputs = rollouts([(1.0, 0.0), (0.0, 8.0), (1.5, nan)], weights=[2.0, 0.5])
    assert pairs_of(OnlineDPO(), inputs) == [[1, 0]]
    assert pairs_of(ALL, inputs) == [[1, 0], [1, 2], [2, 0]]


@pytest.mark.parametrize("method", [OnlineDPO(), ALL], ids=["best_worst", "all"])
def test_completions_without_a_reward_and_dropped_ones_are_in_no_pair(method):
    inputs = rollouts([nan, 1.0, 3.0, 2.0], keep=torch.tensor([True, True, False, True]))
    assert pairs_of(method, inputs) == [[3, 1]]


@settings(max_examples=60, deadline=None)
@given(rewards=groups)
def test_pairs_are_those_found_one_by_one(rewards):
    starts = [sum(map(len, rewards[:index])) for index in range(len(rewards))]
    every, ends = [], []
    for start, group in zip(starts, rewards, strict=True):
        every += [[start + i, start + j] for i, a in enumerate(group) for j, b in enumerate(group) if a > b]
        scores = [reward for reward in group if reward == reward]
        if scores and max(scores) > min(scores):
            ends.append([start + group.index(max(scores)), start + group.index(min(scores))])
    assert sorted(pairs_of(ALL, rollouts(*rewards))) == sorted(every)
    assert pairs_of(OnlineDPO(), rollouts(*rewards)) == ends


def test_the_loss_is_that_of_dpo(paired):
    inputs = paired([([-1.0, -2.0], [-3.0], [-2.0, -2.5], [-1.0])])
    settings = {"beta": 0.3, "loss_type": ("sigmoid", "sft"), "loss_weights": (1.0, 0.5), "rpo_alpha": 0.1, "ld_alpha": 0.5}
    ours, theirs = OnlineDPO(**settings)(inputs), DPO(**settings)(inputs)
    assert [(term.values.tolist(), term.per, term.weight) for term in ours.terms] == [
        (term.values.tolist(), term.per, term.weight) for term in theirs.terms
    ]
    assert ours.metrics.keys() == theirs.metrics.keys()


def test_its_settings_are_those_of_dpo_and_pairs():
    names = [{field.name for field in attrs.fields(cls)} for cls in (DPO, OnlineDPO)]
    assert names[1] - names[0] == {"pairs"} and names[0] < names[1]
    with pytest.raises(ValueError, match="ipo has no label_smoothing"):
        OnlineDPO(loss_type="ipo", label_smoothing=0.1)


def test_what_core_reads():
    assert (OnlineDPO.layout, OnlineDPO.trained_layout) == (Layout.ROLLOUT, Layout.PAIRED)
    assert (OnlineDPO().needs, OnlineDPO().rollout_needs) == (Needs.REFERENCE_LOGPS, Needs.REWARDS | Needs.NO_LOGPS)
    assert OnlineDPO(loss_type="sft").needs is Needs.NOTHING
    assert OnlineDPO(loss_type="aot").scope == "step"


@pytest.mark.parametrize("pairs", ["best_worst", "all"])
@pytest.mark.parametrize("loss_type", ["sigmoid", ("ipo", "sft"), "aot"], ids=str)
def test_promises_to_core(pairs, loss_type):
    check_loss(OnlineDPO(pairs=pairs, loss_type=loss_type), group_relative=True)


def test_equal_rewards_of_many_prompts_give_no_pair():
    """In float32, eight rewards of 0.1."""
    inputs = fake_inputs(Layout.ROLLOUT, branches=8, needs=Needs.REWARDS, num_rewards=3, dtype=torch.float32)
    inputs = attrs.evolve(inputs, rewards=torch.full_like(inputs.rewards, 0.1))
    assert pairs_of(OnlineDPO(), inputs) == pairs_of(ALL, inputs) == []
