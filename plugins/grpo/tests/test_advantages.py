"""Advantages on numbers derived by hand. 1e-4 is added to every standard deviation."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import attrs
import pytest
import torch

from truing_grpo import GRPO

NAN = float("nan")
EPS = 1e-4
PAIRS = [[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]]
"""Rewards for format and for being correct: their sum is 3 in all four."""


def advantages(method, inputs):
    return method.advantages(inputs).values.tolist()


def test_the_distance_from_the_groups_mean_in_its_standard_deviations(rollouts):
    """Group 0: 1, 2, 3 have the mean 2 and the deviation 1; group 1: 0, 4 have 2 and sqrt 8. Their members come mixed."""
    inputs = rollouts([[1.0], [0.0], [2.0], [4.0], [3.0]], [0, 1, 0, 1, 0])
    one, two = 1 / (1 + EPS), 2 / (sqrt(8) + EPS)
    assert advantages(GRPO(), inputs) == pytest.approx([-one, -two, 0.0, two, one])


def test_without_a_scale_it_is_the_distance(rollouts):
    inputs = rollouts([[1.0], [2.0], [6.0]], [0, 0, 0])
    assert advantages(GRPO(scale_rewards="none"), inputs) == [-2.0, -1.0, 3.0]


def test_the_scale_of_the_batch(rollouts):
    """0, 2 and 4, 6: 3 on average, squares 9, 1, 1, 9 over 3: the deviation is sqrt(20/3)."""
    inputs = rollouts([[0.0], [2.0], [4.0], [6.0]], [0, 0, 1, 1])
    one = 1 / (sqrt(20 / 3) + EPS)
    assert advantages(GRPO(scale_rewards="batch"), inputs) == pytest.approx([-one, one, -one, one])


def test_weights_of_rewards(rollouts):
    """1 + 2 x 0 and 0 + 2 x 1 are 1 and 2; -1/2 and 1/2."""
    inputs = rollouts([[1.0, 0.0], [0.0, 1.0]], [0, 0], weights=[1.0, 2.0])
    assert advantages(GRPO(scale_rewards="none"), inputs) == [-0.5, 0.5]


def test_a_reward_that_does_not_apply_is_left_out_of_the_sum(rollouts):
    """Sums 3, 1 and 5 around 3."""
    inputs = rollouts([[1.0, 2.0], [1.0, NAN], [NAN, 5.0]], [0, 0, 0])
    assert advantages(GRPO(scale_rewards="none"), inputs) == [0.0, -2.0, 2.0]


def test_a_completion_without_a_reward_is_no_part_of_the_mean(rollouts):
    """1 and 3 around 2, with the deviation sqrt 2; the second has the advantage 0, and so has all of a group without a reward."""
    inputs = rollouts([[1.0], [NAN], [3.0], [NAN], [NAN]], [0, 0, 0, 1, 1])
    one = 1 / (sqrt(2) + EPS)
    assert advantages(GRPO(), inputs) == pytest.approx([-one, 0.0, one, 0.0, 0.0])
    assert advantages(GRPO(), rollouts([[NAN], [NAN]], [0, 0])) == [0.0, 0.0]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_group_of_one_has_the_advantage_zero(rollouts, aggregation):
    inputs = rollouts([[0.1], [0.3], [7.0]], [0, 0, 1])
    assert advantages(GRPO(multi_objective_aggregation=aggregation), inputs)[2] == 0.0


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-30, 3e38, -7.7])
def test_equal_rewards_give_exactly_zero(rollouts, reward, scale):
    """Eight rewards of 0.1 in float32 have another mean; beside a group that is not equal."""
    inputs = rollouts([[reward]] * 8 + [[reward], [0.0]], [0] * 8 + [1, 1])
    inputs = attrs.evolve(inputs, rewards=inputs.rewards.float(), reward_weights=inputs.reward_weights.float())
    values = advantages(GRPO(scale_rewards=scale), inputs)
    assert values[:8] == [0.0] * 8
    assert values[8] == -values[9] != 0.0


def test_equal_rewards_whose_mean_is_rounded_in_float64_too(rollouts):
    """(0.1 + 0.1 + 0.1) / 3 is not 0.1 there."""
    assert advantages(GRPO(scale_rewards="none"), rollouts([[0.1]] * 3, [0] * 3)) == [0.0] * 3 != [(0.1 + 0.1 + 0.1) / 3 - 0.1] * 3


def test_rewards_of_a_large_offset_keep_their_differences(rollouts):
    """16777216 and 16777218 in float32."""
    inputs = rollouts([[2.0**24], [2.0**24 + 2]], [0, 0])
    inputs = attrs.evolve(inputs, rewards=inputs.rewards.float())
    assert advantages(GRPO(scale_rewards="none"), inputs) == [-1.0, 1.0]


def test_each_reward_by_itself(rollouts):
    """Columns 0, 2 and 0, 20: each is -+1 / sqrt 2 of its own deviation, so the sums are -+sqrt 2 and 1, and 0 in group 1.

    The weights are 1 and 0.5: -+1.5 / sqrt 2; the deviation of these four is 1.5 / sqrt 3.
    """
    inputs = rollouts([[0.0, 0.0], [2.0, 20.0], [1.0, 1.0], [1.0, 1.0]], [0, 0, 1, 1], weights=[1.0, 0.5])
    values = advantages(GRPO(multi_objective_aggregation="normalize_then_sum"), inputs)
    assert values == pytest.approx([-sqrt(3 / 2), sqrt(3 / 2), 0.0, 0.0], rel=1e-3)
    one = 1 / (sqrt(2) + EPS) + 0.5 * 10 / (10 * sqrt(2) + EPS)
    assert values[1] == pytest.approx(one / (one * sqrt(2 / 3) + EPS), rel=1e-12)
    assert values[2:] == [0.0, 0.0]


def test_the_same_sum_of_other_rewards_is_told_apart_by_each_reward_alone(rollouts):
    """The four pairs with a fifth completion that earned neither: equal by their sum, all different each by itself.

    Without it, too, the sums are equal, and each reward's distances are the negative of the other's.
    """
    sums, each = GRPO(), GRPO(multi_objective_aggregation="normalize_then_sum")
    inputs = rollouts([*PAIRS, [0.0, 1.0]], [0] * 5)
    by_sum, apart = advantages(sums, inputs)[:4], advantages(each, inputs)[:4]
    assert len(set(by_sum)) == 1
    assert sorted(apart, reverse=True) == apart and min(a - b for a, b in pairwise(apart)) > 0.1
    alone = rollouts(PAIRS, [0] * 4)
    assert advantages(sums, alone) == [0.0] * 4
    assert advantages(each, alone) == pytest.approx([0.0] * 4, abs=1e-9)


def test_the_pairs_each_in_its_own_group(rollouts):
    """Beside a completion that earned nothing, any sum of 3 gives 1 / sqrt 2; two rewards that are earned count twice as one."""
    rewards, trees = [row for pair in PAIRS for row in (pair, [0.0, 0.0])], [0, 0, 1, 1, 2, 2, 3, 3]
    inputs = rollouts(rewards, trees)
    by_sum = advantages(GRPO(), inputs)[::2]
    assert by_sum == pytest.approx([1 / sqrt(2)] * 4, rel=1e-3) and len(set(by_sum)) == 1
    apart = advantages(GRPO(multi_objective_aggregation="normalize_then_sum"), inputs)[::2]
    assert apart[1] == pytest.approx(2 * apart[0], rel=1e-3) and apart == pytest.approx(apart[::-1])


@pytest.mark.parametrize(("length", "punishment"), [(1, 0.0), (6, 0.0), (7, 0.25), (8, 0.5), (10, 1.0)])
def test_overlong_completions_are_punished(rollouts, length, punishment):
    """Limit 10, buffer 4: nothing up to 6 tokens, then a quarter more for each; doubled, and beside one token with 0."""
    inputs = rollouts([[1.0], [1.0]], [0, 0], lengths=[length, 1])
    method = GRPO(scale_rewards="none", overlong_buffer=4, overlong_penalty=2.0)
    assert advantages(method, inputs) == [-punishment, punishment]


def test_the_punishment_is_a_reward_of_its_own_where_each_is_normalised(rollouts):
    """The rewards are equal, so that the lengths alone tell the completions apart; one without a reward is not punished."""
    inputs = rollouts([[1.0], [1.0], [NAN]], [0, 0, 0], lengths=[10, 1, 10])
    values = advantages(GRPO(multi_objective_aggregation="normalize_then_sum", overlong_buffer=4), inputs)
    assert values[0] == -values[1] < -0.5 and values[2] == 0.0


def test_a_buffer_longer_than_the_rollouts_limit(rollouts):
    with pytest.raises(ValueError, match=r"overlong_buffer is 11, which is more than max_completion_length \(10\)"):
        GRPO(overlong_buffer=11).advantages(rollouts([[1.0]], [0]))


def test_truncated_completions_are_compared_and_then_left_out(rollouts):
    inputs = rollouts([[0.0], [2.0]], [0, 0], truncated=[True, False])
    method = GRPO(mask_truncated_completions=True, scale_rewards="none")
    assert method.advantages(inputs).values.tolist() == [-1.0, 1.0]
    assert method.advantages(inputs).keep.tolist() == [False, True]
    assert GRPO().advantages(inputs).keep is None


def test_they_are_of_the_policys_type(rollouts):
    inputs = rollouts([[0.0], [2.0]], [0, 0])
    inputs = attrs.evolve(inputs, token_logps=inputs.token_logps.float(), rewards=inputs.rewards.float())
    assert GRPO().advantages(inputs).values.dtype is torch.float32


def test_completions_are_worth_what_their_advantages_compare(rollouts):
    """Sums 1 + 2 x 0 and 0 + 2 x 1, or nothing; with a buffer of 4 before the limit of 10, 8 tokens cost 2 / 4."""
    rewards = [[1.0, 0.0], [0.0, 1.0], [NAN, NAN]]
    worth = GRPO().worth(rollouts(rewards, [0, 0, 0], weights=[1.0, 2.0]))
    assert worth.tolist() == pytest.approx([1.0, 2.0, NAN], nan_ok=True)
    long = rollouts([[1.0], [1.0]], [0, 0], lengths=[6, 8])
    assert GRPO().worth(long).tolist() == [1.0, 1.0]
    assert GRPO(overlong_buffer=4).worth(long).tolist() == [1.0, 0.5]


def test_rewards_that_make_up_for_each_other_are_worth_the_same_where_each_is_normalised(rollouts):
    """The columns are the same three numbers in three orders, so that every row sums to 0 but for rounding."""
    rewards = [[1.0, 2.0, 6.0], [2.0, 6.0, 1.0], [6.0, 1.0, 2.0]]
    method = GRPO(multi_objective_aggregation="normalize_then_sum")
    assert method.worth(rollouts(rewards, [0, 0, 0])).tolist() == [0.0, 0.0, 0.0]
    first, second = method.worth(rollouts(PAIRS[:2], [0, 0], weights=[1.0, 2.0])).tolist()
    assert first == -second > 0, "the second reward weighs more"
