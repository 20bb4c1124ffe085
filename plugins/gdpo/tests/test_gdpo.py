"""What GDPO is beside GRPO, on numbers derived by hand; the aggregation's own tests are those of truing-grpo."""

from __future__ import annotations

from math import sqrt

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import Layout, LossInputs, Needs
from truing.testing import check_loss, fake_inputs
from truing_gdpo import GDPO
from truing_grpo import GRPO


def rollouts(rewards, trees, weights=None):
    """Completions of one token with these rewards [B, R]."""
    count = len(rewards)
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=torch.full((count,), torch.nan, dtype=torch.float64),
        sequence_ids=torch.arange(count),
        tree_ids=torch.tensor(trees),
        lengths=torch.ones(count, dtype=torch.int64),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        reward_weights=torch.tensor([1.0] * len(rewards[0]) if weights is None else weights, dtype=torch.float64),
        max_completion_length=10,
    )


def advantages(rewards, trees, weights=None):
    return GDPO().advantages(rollouts(rewards, trees, weights)).values.tolist()


def test_rewards_of_any_scale_count_alike():
    """Columns 0, 1 and 1000, 0: -+1 / sqrt 2 and +-1 / sqrt 2 of their deviations, by the weights 1 and 1/2 -+1 / (2 sqrt 2).

    The deviation of these over the batch is 1/2. By their sum, the first would be far ahead.
    """
    assert advantages([[0.0, 1000.0], [1.0, 0.0]], [0, 0], [1.0, 0.5]) == pytest.approx([-1 / sqrt(2), 1 / sqrt(2)], rel=1e-3)


def test_a_completion_that_earns_both_rewards_is_ahead_of_one_that_earns_twice_of_one():
    """Sums 2, 2 and 0 in either; the columns are 1, 0, 0 and 1, 2, 0: 2/sqrt 3 + 0, -1/sqrt 3 + 1, -1/sqrt 3 - 1."""
    first, second, third = advantages([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]], [0, 0, 0])
    assert first > second > third
    raw = [2 / sqrt(3), 1 - 1 / sqrt(3), -1 - 1 / sqrt(3)]
    deviation = sqrt(sum(x * x for x in raw) / 2)
    assert [first, second, third] == pytest.approx([x / deviation for x in raw], rel=1e-3)


def test_completions_that_earn_the_same_sum_by_different_rewards_are_not_worth_the_same():
    """Columns 1, 1, 0, 0 and 0, 0, 1, 0 and 0, 0, 0, 1, of deviations 1 / sqrt 3, 1/2 and 1/2: +-sqrt 3 / 2, and 3/2 or -1/2."""
    inputs = rollouts([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0, 0, 0, 0])
    less = sqrt(3) / 2 - 1
    assert GDPO().worth(inputs).tolist() == pytest.approx([less, less, -less, -less], abs=1e-3)
    assert GRPO().worth(inputs).tolist() == [1.0, 1.0, 1.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(st.tuples(st.integers(0, 2), st.floats(-5, 5, width=16)), min_size=1, max_size=9),
    weight=st.floats(0.5, 2),
)
def test_one_reward_is_grpo_but_for_a_factor(drawn, weight):
    """(r - mean) / (std + 1e-4) of the group, over their own deviation in the batch + 1e-4; the weight cancels, nearly."""
    inputs = rollouts([[value] for _, value in drawn], [tree for tree, _ in drawn], [weight])
    grpo = attrs.evolve(inputs, reward_weights=torch.ones(1, dtype=torch.float64))
    own, plain = (rows.tolist() for rows in (GDPO().advantages(inputs).values, GRPO().advantages(grpo).values))
    square = sum(x * x for x in plain)
    factor = weight / (weight * sqrt(square / max(1, len(plain) - 1)) + 1e-4)
    assert own == pytest.approx([factor * x for x in plain], rel=1e-9, abs=1e-12)


def test_it_is_a_setting_of_grpo():
    inputs = rollouts([[0.0, 1.0], [1.0, 5.0], [2.0, 2.0], [0.5, 0.0]], [0, 0, 1, 1])
    same = GRPO(multi_objective_aggregation="normalize_then_sum")
    assert GDPO().advantages(inputs).values.tolist() == same.advantages(inputs).values.tolist()
    batch = attrs.evolve(
        fake_inputs(Layout.ROLLOUT, branches=2, trees=2), advantages=torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    )
    (own,), (other,) = GDPO(loss_type="grpo")(batch).terms, attrs.evolve(same, loss_type="grpo")(batch).terms
    assert own.values.tolist() == other.values.tolist()


def test_it_has_grpos_settings():
    defaults, grpos = ({field.name: field.default for field in attrs.fields(cls)} for cls in (GDPO, GRPO))
    assert defaults == grpos | {"multi_objective_aggregation": "normalize_then_sum"}
    assert (GDPO.name, GDPO.layout) == ("gdpo", Layout.ROLLOUT)
    assert GDPO(beta=0.1).needs == Needs.REFERENCE_LOGPS | Needs.PROXIMAL_LOGPS
    assert GDPO().rollout_needs == Needs.REWARDS | Needs.NO_LOGPS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"multi_objective_aggregation": "sum_then_normalize"},
            "is sum_then_normalize, which normalises the sum of the rewards and so cannot tell completions apart that earn the "
            "same sum by different rewards: that is GRPO; leave it out, or use the method grpo",
        ),
        (
            {"scale_rewards": "none"},
            "^scale_rewards is none, but gdpo, which divides each reward by its group's deviation, does not read it; leave it out, "
            "or use the method grpo$",
        ),
        ({"loss_type": "cispo"}, "cispo needs epsilon_high"),
    ],
)
def test_settings_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        GDPO(**given)


@pytest.mark.parametrize("method", [GDPO(), GDPO(loss_type="gspo", beta=0.1)])
def test_promises_to_core(method):
    check_loss(method, gradcheck=False, group_relative=True)
