"""Values, gradients and metrics derived by hand; what holds for all scores."""

from __future__ import annotations

from math import exp, log, log1p

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.testing import check_loss
from truing_reward_model import RankedRewardModel, RewardModelLoss

few_examples = settings(max_examples=40, deadline=None)
numbers = st.floats(-8, 8)
every_method = pytest.mark.parametrize(
    "method",
    [cls(center_rewards_coefficient=c) for cls in (RewardModelLoss, RankedRewardModel) for c in (None, 0.01)],
    ids=lambda method: f"{method.name}-{method.center_rewards_coefficient}",
)


@every_method
def test_it_keeps_every_promise(method):
    check_loss(method)


def test_bradley_terry(pairs, reduced):
    """r_w - r_l = ln 3 and -ln 3: -log 3/4 = ln 4/3 and -log 1/4 = ln 4; their mean is ln(16/3) / 2."""
    inputs = pairs([(log(3) + 1, 1.0), (-2.0, log(3) - 2)])
    loss, _ = reduced(RewardModelLoss()(inputs), inputs)
    assert loss.item() == pytest.approx(log(16 / 3) / 2)
    loss.backward()
    # d/dr_w = -(1 - sigmoid(r_w - r_l)) / 2 = -1/4 / 2 and -3/4 / 2
    assert inputs.scores.grad.tolist() == pytest.approx([-0.125, 0.125, -0.375, 0.375])


def test_a_margin_is_what_the_difference_must_exceed(pairs, reduced):
    """r_w - r_l - m = 1 + ln 3 - 1 = ln 3, and 0 - 0 without a margin: (ln 4/3 + ln 2) / 2."""
    inputs = pairs([(log(3), -1.0), (0.5, 0.5)], margins=[1.0, 0.0])
    loss, metrics = reduced(RewardModelLoss()(inputs), inputs)
    assert loss.item() == pytest.approx((log(4 / 3) + log(2)) / 2)
    assert metrics["margin"].item() == pytest.approx((log(3) + 1) / 2), "as the model has it, without the dataset's"


def test_centring(pairs, reduced):
    """(1 + 1)^2 = 4 and (3 - 1)^2 = 4, times 0.01; ln 2 and log(1 + e^-4) beside it."""
    inputs = pairs([(1.0, 1.0), (3.0, -1.0)])
    loss, _ = reduced(RewardModelLoss(center_rewards_coefficient=0.01)(inputs), inputs)
    assert loss.item() == pytest.approx((log(2) + log1p(exp(-4))) / 2 + 0.04)


def test_metrics_of_pairs(pairs, reduced):
    """One pair right, one wrong, one tie, which is wrong: 1/3; margins 2, -1, 0; chosen 3, 0, 1, rejected 1, 1, 1; mean 7/6."""
    inputs = pairs([(3.0, 1.0), (0.0, 1.0), (1.0, 1.0)])
    _, metrics = reduced(RewardModelLoss()(inputs), inputs)
    found = {name: value.item() for name, value in metrics.items() if name != "loss"}
    assert found == pytest.approx(
        {"accuracy": 1 / 3, "margin": 1 / 3, "rewards/chosen": 4 / 3, "rewards/rejected": 1.0, "mean_reward": 7 / 6}
    )


def test_ranked_answers_are_all_their_pairs_and_each_prompt_weighs_the_same(ranked, reduced):
    """Ranks 0, 1, 1 with scores ln 3, 0, ln 3: pairs with differences ln 3 and 0, not that of the tie: (ln 4/3 + ln 2) / 2.

    A prompt with one pair, difference -ln 3: ln 4. The mean of both prompts.
    """
    inputs = ranked([[(log(3), 0), (0.0, 1), (log(3), 1)], [(0.0, 0), (log(3), 1)]])
    loss, metrics = reduced(RankedRewardModel()(inputs), inputs)
    assert loss.item() == pytest.approx(((log(4 / 3) + log(2)) / 2 + log(4)) / 2)
    assert metrics["accuracy"].item() == pytest.approx((0.5 + 0) / 2)
    assert metrics["margin"].item() == pytest.approx((log(3) / 2 - log(3)) / 2)


def test_centring_of_ranked_answers(ranked, reduced):
    """Scores 1, 0, -1: sums of pairs 1, 0, -1, so 2/3 on average; costs log(1 + e^-1) twice and log(1 + e^-2)."""
    inputs = ranked([[(1.0, 0), (0.0, 1), (-1.0, 2)]])
    loss, _ = reduced(RankedRewardModel(center_rewards_coefficient=0.3)(inputs), inputs)
    assert loss.item() == pytest.approx((2 * log1p(exp(-1)) + log1p(exp(-2))) / 3 + 0.3 * 2 / 3)


@few_examples
@given(scores=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), centre=st.sampled_from([None, 0.0, 0.1]))
def test_two_ranked_answers_are_a_pair(pairs, ranked, reduced, scores, centre):
    one = pairs(scores)
    other = ranked([[(better, 0), (worse, 1)] for better, worse in scores])
    found = reduced(RewardModelLoss(center_rewards_coefficient=centre)(one), one)
    expected = reduced(RankedRewardModel(center_rewards_coefficient=centre)(other), other)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-12)
    assert {name: value.item() for name, value in found[1].items()} == pytest.approx(
        {name: value.item() for name, value in expected[1].items()}, rel=1e-12
    )


@few_examples
@given(scores=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), shift=numbers)
def test_a_shift_of_all_scores_changes_nothing_unless_they_are_centred(pairs, scores, shift):
    (plain,) = RewardModelLoss()(pairs(scores)).terms
    (moved,) = RewardModelLoss()(pairs([(better + shift, worse + shift) for better, worse in scores])).terms
    assert moved.values.tolist() == pytest.approx(plain.values.tolist(), abs=1e-9)
    _, centring = RewardModelLoss(center_rewards_coefficient=0.1)(pairs([(1.0 + shift, -1.0 + shift)])).terms
    assert centring.values.item() == pytest.approx(4 * shift**2, abs=1e-9)


@few_examples
@given(scores=st.tuples(numbers, numbers), margin=st.floats(0, 5))
def test_a_margin_is_a_shift_of_the_better_score(pairs, scores, margin):
    (given_one,) = RewardModelLoss()(pairs([scores], margins=[margin])).terms
    (moved,) = RewardModelLoss()(pairs([(scores[0] - margin, scores[1])])).terms
    assert given_one.values.item() == pytest.approx(moved.values.item(), rel=1e-12)


@every_method
def test_extremes_are_finite(pairs, ranked, method):
    scores = [(1e4, -1e4), (-1e4, 1e4)]
    inputs = pairs(scores) if method.name == "reward-model" else ranked([[(better, 0), (worse, 1)] for better, worse in scores])
    output = method(inputs)
    torch.stack([term.values.sum() for term in output.terms]).sum().backward()
    assert all(term.values.isfinite().all() for term in (*output.terms, *output.metrics.values()))
    assert inputs.scores.grad.isfinite().all()
    assert not any(term.values.requires_grad for term in output.metrics.values())


def test_a_negative_coefficient_is_refused():
    with pytest.raises(ValueError, match="center_rewards_coefficient must be >= 0, got -1"):
        attrs.evolve(RewardModelLoss(), center_rewards_coefficient=-1.0)
