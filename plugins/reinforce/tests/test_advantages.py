"""Advantages on numbers derived by hand: baselines, the divergence in the reward, clipping, what is left out, the state."""

from __future__ import annotations

from math import log, nan

import attrs
import pytest
import torch

from truing import Needs
from truing_reinforce import RLOO, Reinforce
from truing_reinforce.baselines import normalised

TWO_TOKENS = [(-1.0, -2.0), (-2.0, -4.0)]
"""Log-ratios 1 and 2."""
ONE_TOKEN = [(-1.0, -0.5)]
"""A log-ratio of -0.5."""


def values_of(method, inputs):
    return method.advantages(inputs).values.tolist()


def test_no_baseline(rollouts):
    assert values_of(Reinforce(baseline="none"), rollouts([[1.0, -2.0]])) == [1.0, -2.0]


def test_leave_one_out(rollouts):
    """1 less (2 + 6) / 2, 2 less 7 / 2, 6 less 3 / 2; the second prompt has two: 0 less 4, and 4 less 0."""
    inputs = rollouts([[1.0, 2.0, 6.0], [0.0, 4.0]])
    assert values_of(Reinforce(baseline="leave_one_out"), inputs) == pytest.approx([-3.0, -1.5, 4.5, -4.0, 4.0])
    assert values_of(RLOO(beta=0.0), inputs) == pytest.approx([-3.0, -1.5, 4.5, -4.0, 4.0])


def test_who_has_no_reward_is_in_no_baseline(rollouts):
    """1 and 2 are compared with each other alone; a completion that is the only one with a reward has nothing to learn from."""
    found = Reinforce(baseline="leave_one_out").advantages(rollouts([[1.0, nan, 2.0], [nan, 5.0], [nan, nan]]))
    assert found.values.tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert found.keep.tolist() == [True, False, True, False, True, False, False]


def test_rewards_that_apply_are_weighed_and_summed(rollouts):
    """2 x 1 + 0.5 x 4 = 4; 2 x 1 alone."""
    inputs = rollouts([[(1.0, 4.0), (1.0, nan)]], weights=[2.0, 0.5])
    assert values_of(Reinforce(baseline="none"), inputs) == [4.0, 2.0]


@pytest.mark.parametrize("cls", [Reinforce, RLOO])
def test_what_is_compared_is_the_score_within_its_range(rollouts, cls):
    """2 x 3 = 6 and 2 x 4 = 8 are both more than 5, and so the same; -1 is between."""
    inputs = rollouts([[3.0, 4.0, -0.5, nan]], weights=[2.0])
    found = cls(reward_clip_range=(-5.0, 5.0)).worth(inputs)
    assert found[:3].tolist() == [5.0, 5.0, -1.0] and found[3].isnan()
    assert cls().worth(inputs)[:3].tolist() == [6.0, 8.0, -1.0]


def test_batch_is_over_tokens(rollouts):
    """Rewards 1, 1 and 4: mean 2, squares 1 + 1 + 4 = 6, unbiased variance 3."""
    inputs = rollouts([[1.0, 4.0]], [TWO_TOKENS, ONE_TOKEN])
    spread = 3**0.5 + 1e-4
    assert values_of(Reinforce(), inputs) == pytest.approx([-1 / spread, -1 / spread, 2 / spread])


def test_batch_has_the_divergence_that_is_still_to_come(rollouts):
    """beta = 1: 3 - (1 + 2) = 0 and 3 - 2 = 1; 1.5 + 0.5 = 2: mean 1, unbiased variance 1."""
    inputs = rollouts([[3.0, 1.5]], [TWO_TOKENS, ONE_TOKEN])
    assert values_of(Reinforce(beta=1.0), inputs) == pytest.approx([-1 / 1.0001, 0.0, 1 / 1.0001])


def test_other_baselines_have_the_divergence_of_the_completion(rollouts):
    """beta = 1: 3 - (1 + 2) = 0 and 1.5 + 0.5 = 2; one less the other; kl is 3 and -0.5 over three tokens."""
    inputs = rollouts([[3.0, 1.5]], [TWO_TOKENS, ONE_TOKEN])
    assert values_of(Reinforce(baseline="none", beta=1.0), inputs) == [0.0, 2.0]
    found = RLOO(beta=1.0).advantages(inputs)
    assert found.values.tolist() == [-2.0, 2.0]
    assert found.metrics["kl"].values.item() == pytest.approx(2.5 / 3) and found.metrics["kl"].per == "constant"


def test_divergence_is_measured_of_what_has_a_reward(rollouts):
    found = RLOO(beta=1.0).advantages(rollouts([[3.0, nan]], [TWO_TOKENS, ONE_TOKEN]))
    assert found.metrics["kl"].values.item() == 1.5


@pytest.mark.parametrize(("kind", "expected"), [("k1", log(2)), ("k2", log(2) ** 2 / 2), ("k3", 0.5 - 1 + log(2)), (None, log(2))])
def test_estimates_of_the_divergence(rollouts, kind, expected):
    method = Reinforce(baseline="none", beta=2.0, kl_estimator=kind)
    assert values_of(method, rollouts([[0.0]], [[(-1.0, -1 - log(2))]])) == pytest.approx([-2 * expected])


def test_in_the_loss_it_is_not_in_the_reward(rollouts):
    method = Reinforce(baseline="none", beta=1.0, kl_in="loss")
    assert values_of(method, rollouts([[3.0]], [TWO_TOKENS])) == [3.0]
    assert method.needs == Needs.PROXIMAL_LOGPS | Needs.REFERENCE_LOGPS
    assert method.rollout_needs == Needs.REWARDS | Needs.NO_LOGPS


def test_what_is_needed():
    for method in (Reinforce(), RLOO(beta=0.0), Reinforce(beta=0.0, kl_in="reward")):
        assert (method.needs, method.rollout_needs) == (Needs.PROXIMAL_LOGPS, Needs.REWARDS | Needs.NO_LOGPS)
    for method in (Reinforce(beta=0.1), RLOO()):
        assert (method.needs, method.rollout_needs) == (Needs.PROXIMAL_LOGPS, Needs.REWARDS | Needs.REFERENCE_LOGPS)
    assert (RLOO().least_generations, Reinforce(baseline="leave_one_out").least_generations, Reinforce().least_generations) == (
        2,
        2,
        1,
    )


def test_normalised_advantages(rollouts):
    """-3, 3, -1, 1: mean 0, squares 20, unbiased variance 20 / 3."""
    spread = (20 / 3) ** 0.5 + 1e-4
    inputs = rollouts([[0.0, 3.0], [0.0, 1.0]])
    expected = [-3 / spread, 3 / spread, -1 / spread, 1 / spread]
    assert values_of(RLOO(beta=0.0, normalize_advantages=True), inputs) == pytest.approx(expected)


def test_normalising_leaves_out_what_is_masked():
    """1 and 3: mean 2, unbiased variance 2. One value alone has no spread; nothing at all is nothing."""
    values = torch.tensor([1.0, nan, 3.0], dtype=torch.float64)
    spread = 2**0.5 + 1e-4
    assert normalised(values, ~values.isnan()).tolist() == pytest.approx([-1 / spread, 0.0, 1 / spread])
    assert normalised(values[:1], torch.tensor([True])).tolist() == [0.0]
    assert normalised(values, torch.tensor([False] * 3)).tolist() == [0.0] * 3


def test_rewards_are_clipped_before_the_divergence_is_taken_off(rollouts):
    """9 to 2, -9 to -1, less 0.5 x 3."""
    method = Reinforce(baseline="none", beta=0.5, reward_clip_range=(-1.0, 2.0))
    assert values_of(method, rollouts([[9.0, -9.0, nan]], [TWO_TOKENS] * 3)) == [0.5, -2.5, 0.0]


def test_truncated_completions_may_be_left_out_of_training(rollouts):
    """They are in the baseline all the same: 1 less 3, and 3 less 1."""
    inputs = rollouts([[1.0, 3.0]], truncated=[True, False])
    found = RLOO(beta=0.0, mask_truncated_completions=True).advantages(inputs)
    assert (found.values.tolist(), found.keep.tolist()) == ([-2.0, 2.0], [False, True])
    assert RLOO(beta=0.0).advantages(inputs).keep.tolist() == [True, True]


def test_moving_average(rollouts):
    """The first batch, of mean 2, is its own baseline; then 2 is; then 0.75 x 2 + 0.25 x 6 = 3."""
    method = Reinforce(baseline="moving_average", baseline_decay=0.75)
    state, found = method.initial_state(), []
    for rewards in ([1.0, 3.0], [6.0, 6.0], [3.0, nan]):
        advantages = method.advantages(rollouts([rewards], state=state))
        state = advantages.state
        found.append(advantages.values.tolist())
    assert found == [[-1.0, 1.0], [4.0, 4.0], [0.0, 0.0]]
    assert state == {"average": 3.0, "batches": 3}


def test_a_batch_without_rewards_leaves_the_moving_average(rollouts):
    method = Reinforce(baseline="moving_average")
    advantages = method.advantages(rollouts([[nan, nan]], state={"average": 2.0, "batches": 5}))
    assert (advantages.state, advantages.values.tolist()) == ({"average": 2.0, "batches": 5}, [0.0, 0.0])


def test_only_the_moving_average_is_state(rollouts):
    for method in (Reinforce(), Reinforce(baseline="leave_one_out"), RLOO()):
        assert not hasattr(method, "initial_state") or method.initial_state() == {}
        assert method.advantages(rollouts([[1.0, 2.0]])).state is None


def test_rloo_is_reinforce():
    settings = {"beta": 0.3, "epsilon": 0.1, "epsilon_high": 0.4, "num_iterations": 3, "num_minibatches": 2}
    settings |= {"normalize_advantages": True, "reward_clip_range": (0.0, 1.0), "mask_truncated_completions": True}
    settings |= {"importance_sampling_correction": "sequence_mask", "importance_sampling_clip_max": 2.0}
    settings |= {"importance_sampling_clip_min": 0.5}
    assert RLOO(**settings).as_reinforce == Reinforce(baseline="leave_one_out", importance_sampling_level="sequence", **settings)
    ours = {field.name for field in attrs.fields(RLOO)}
    assert ours == set(settings) < {field.name for field in attrs.fields(Reinforce)}
    assert RLOO() == RLOO(beta=0.05, epsilon=0.2, epsilon_high=None, num_iterations=1, normalize_advantages=False)
