"""PPO on numbers derived by hand, its metrics, its state, and the settings that are refused."""

from __future__ import annotations

from math import log, nan

import attrs
import pytest
import torch

from truing import Layout, Needs
from truing.settings import describe_bounds
from truing.testing import reduce_step
from truing_ppo import PPO
from truing_ppo.gae import whitened

BRANCH = [(-1.0, -2.0, 0.5), (-2.0, -1.0, 0.25), (-1.0, -3.0, -0.5)]
"""Log-ratios to the reference 1, -1 and 2; values 0.5, 0.25 and -0.5."""
PLAIN = PPO(kl_coef=0.1, lam=0.5, whiten_advantages=False)


def values_of(method, inputs):
    return method.advantages(inputs).values.tolist()


def metrics_of(advantages):
    assert {term.per for term in advantages.metrics.values()} == {"constant"}
    return {name: term.values.item() for name, term in advantages.metrics.items()}


def test_three_tokens(rollouts):
    """Rewards -0.1, 0.1 and 1 - 0.2 = 0.8.

    Deltas: 0.8 + 0.5 = 1.3 last, 0.1 - 0.5 - 0.25 = -0.65, and -0.1 + 0.25 - 0.5 = -0.35. With lambda 1/2, A = 1.3,
    -0.65 + 0.65 = 0, -0.35; returns A + V = 0.8, 0.25, 0.15.
    """
    found = PLAIN.advantages(rollouts([BRANCH], [[1.0]]))
    assert found.values.tolist() == pytest.approx([-0.35, 0.0, 1.3])
    assert found.columns["returns"].tolist() == pytest.approx([0.15, 0.25, 0.8])
    assert found.columns["values"].tolist() == [0.5, 0.25, -0.5]


def test_discount(rollouts):
    """gamma = lambda = 1/2: deltas 1.3, 0.1 - 0.25 - 0.25 = -0.4, -0.1 + 0.125 - 0.5 = -0.475; A = 1.3, -0.075, -0.49375."""
    assert values_of(attrs.evolve(PLAIN, gamma=0.5), rollouts([BRANCH], [[1.0]])) == pytest.approx([-0.49375, -0.075, 1.3])


def test_k3_is_a_distance(rollouts):
    """exp(-x) - 1 + x of ln 2 is 1/2 - 1 + ln 2, of -ln 2 it is 1 - ln 2; with lambda = 0 and values 0, A is the reward."""
    branch = [(-1.0, -1 - log(2), 0.0), (-1.0, -1 + log(2), 0.0)]
    method = PPO(kl_coef=1.0, kl_estimator="k3", lam=0.0, whiten_advantages=False)
    assert values_of(method, rollouts([branch], [[0.0]])) == pytest.approx([0.5 - log(2), log(2) - 1])


def test_k3_keeps_small_distances():
    """x^2 / 2 for x = 1e-4, in float32, where exp(-x) - 1 + x is off by more than that."""
    from truing.testing import fake_inputs

    inputs = fake_inputs(Layout.ROLLOUT, needs=Needs.REFERENCE_LOGPS | Needs.VALUES | Needs.REWARDS, dtype=torch.float32)
    logps = torch.zeros(len(inputs.token_logps))
    inputs = attrs.evolve(inputs, token_logps=logps, reference_token_logps=logps - 1e-4)
    metrics = PPO(kl_estimator="k3").advantages(inputs).metrics
    assert metrics["objective/kl"].values.item() == pytest.approx(inputs.lengths.float().mean().item() * 0.5e-8, rel=0.02)


def test_metrics_of_a_rollout(rollouts):
    """One branch: KL 1 - 1 + 2 = 2, its cost -0.2, score 1, together 0.8, and -log pi = 4. The other: 0, score 3, and 1."""
    inputs = rollouts([BRANCH, [(-1.0, -1.0, 0.0)]], [[1.0], [3.0]])
    assert metrics_of(PLAIN.advantages(inputs)) == pytest.approx(
        {
            "objective/kl": 1.0,
            "objective/non_score_reward": -0.1,
            "objective/rlhf_reward": 1.9,
            "objective/scores": 2.0,
            "objective/entropy": 2.5,
        }
    )


def test_score_is_the_weighted_sum_of_the_rewards_that_apply(rollouts):
    """2 x 1 + 0.5 x 4 = 4, and 2 x 1 alone where the other is NaN: one token each, of value and divergence 0."""
    inputs = rollouts([[(-1.0, -1.0, 0.0)]] * 2, [[1.0, 4.0], [1.0, nan]], weights=[2.0, 0.5])
    assert values_of(PLAIN, inputs) == [4.0, 2.0]


def test_a_branch_without_a_reward_is_dropped_and_changes_nothing(rollouts):
    """The other two, with 1 and 3, are whitened to -1/sqrt 2 and 1/sqrt 2: mean 2, unbiased variance 2."""
    token = [(-1.0, -1.0, 0.0)]
    inputs = rollouts([token, [(-1.0, nan, 0.5), (-1.0, -5.0, 7.0)], token], [[1.0], [nan], [3.0]])
    found = PPO().advantages(inputs)
    assert found.keep.tolist() == [True, False, True]
    assert found.values.tolist() == pytest.approx([-(0.5**0.5), 0.0, 0.0, 0.5**0.5])
    metrics = metrics_of(found)
    assert (metrics["objective/scores"], metrics["objective/kl"], metrics["objective/entropy"]) == (2.0, 0.0, 1.0)


def test_nothing_to_learn_from_is_no_error(rollouts):
    found = PPO(target_kl=1.0).advantages(rollouts([BRANCH], [[nan]], state={"kl_coef": 0.05}))
    assert (found.keep.tolist(), found.values.tolist(), found.state) == ([False], [0.0] * 3, {"kl_coef": 0.05})


def test_missing_end_costs(rollouts):
    inputs = rollouts([[(-1.0, -1.0, 0.0)]] * 2, [[1.0], [1.0]], truncated=[True, False])
    assert values_of(attrs.evolve(PLAIN, missing_eos_penalty=3.0), inputs) == [-2.0, 1.0]
    assert values_of(PLAIN, inputs) == [1.0, 1.0]


def test_whitening():
    """1, 2 and 3 have mean 2 and unbiased variance 1; the fourth is not in the mask. A single value has no variance."""
    values, mask = torch.tensor([1.0, 2.0, 3.0, 100.0], dtype=torch.float64), torch.tensor([True, True, True, False])
    assert whitened(values, mask).tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0])
    assert whitened(2 * values, mask, shift_mean=False).tolist() == pytest.approx([3.0, 4.0, 5.0, 0.0])
    assert whitened(values[:1], mask[:1]).tolist() == [0.0]
    assert whitened(values, ~(mask | True)).tolist() == [0.0] * 4


def test_whitened_rewards(rollouts):
    """Rewards -0.1, 0.1, 0.9 - 0.2 = 0.7 have mean 0.7 / 3 and unbiased variance 0.52 / 3; lambda 0 and values 0 show them."""
    branch = [(*token[:2], 0.0) for token in BRANCH]
    method = PPO(kl_coef=0.1, lam=0.0, whiten_rewards=True, whiten_advantages=False)
    mean, spread = 0.7 / 3, ((0.1 + 0.7 / 3) ** 2 + (0.1 - 0.7 / 3) ** 2 + (0.7 - 0.7 / 3) ** 2) / 2
    expected = [(reward - mean) / spread**0.5 + mean for reward in (-0.1, 0.1, 0.7)]
    assert values_of(method, rollouts([branch], [[0.9]])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("correction", "weights"), [("token_truncate", [1.0, 2.0, 3.0]), ("sequence_mask", [0.0] * 3)])
def test_the_policy_and_not_the_critic_is_corrected_for_the_sampler(update, correction, weights):
    """Costs -1.2, 0.8 and -2.2 as below; the trainer's probabilities are 1, 2 and 4 times the sampler's, together 8 times."""
    inputs = update([1.5, 0.5, 1.1], [1.0, -1.0, 2.0], [(1.0, 1.0, 0.0)] * 3)
    inputs = attrs.evolve(inputs, behavior_token_logps=torch.tensor([-1.0, -1 - log(2), -1 - log(4)], dtype=torch.float64))
    plain, corrected = PPO()(inputs), PPO(importance_sampling_correction=correction)(inputs)
    costs = [cost * weight for cost, weight in zip([-1.2, 0.8, -2.2], weights, strict=True)]
    assert plain.terms[0].values.tolist() == pytest.approx([-1.2, 0.8, -2.2])
    assert corrected.terms[0].values.tolist() == pytest.approx(costs)
    assert corrected.terms[1].values.tolist() == plain.terms[1].values.tolist()
    assert "sampling/importance_sampling_ratio/mean" in corrected.metrics
    assert Needs.BEHAVIOR_LOGPS in PPO(importance_sampling_correction=correction).needs and Needs.BEHAVIOR_LOGPS not in PPO().needs


def test_clipped_losses(update):
    """Advantages 1, -1, 2 and ratios 1.5, 0.5, 1.1: max(-1.5, -1.2), max(0.5, 0.8), -2.2, two of them clipped.

    Values 1, 0, 0, before 0.5, 0, 0.4, held at 0.7, 0, 0.2; returns 0, 1, 0: the greater halves of squares are 0.5 (of 0.245),
    0.5, and 0.02 of the held one.
    """
    inputs = update([1.5, 0.5, 1.1], [1.0, -1.0, 2.0], [(1.0, 0.5, 0.0), (0.0, 0.0, 1.0), (0.0, 0.4, 0.0)])
    output = PPO()(inputs)
    policy, value = output.terms
    assert policy.values.tolist() == pytest.approx([-1.2, 0.8, -2.2])
    assert value.values.tolist() == pytest.approx([0.5, 0.5, 0.02])
    loss, metrics = reduce_step(output, inputs)
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(
        {
            "loss": -2.6 / 3 + 0.1 * 0.34,
            "loss/policy_avg": -2.6 / 3,
            "loss/value_avg": 0.34,
            "policy/approxkl_avg": (log(1.5) ** 2 + log(0.5) ** 2 + log(1.1) ** 2) / 6,
            "policy/clipfrac_avg": 2 / 3,
            "val/clipfrac_avg": 1 / 3,
            "val/ratio": 3.1 / 3,
        }
    )
    by_logps, by_values = torch.autograd.grad(loss, (inputs.token_logps, inputs.token_values))
    assert by_logps.tolist() == pytest.approx([0.0, 0.0, -2.2 / 3])
    assert by_values.tolist() == pytest.approx([0.1 / 3, -0.1 / 3, 0.0])


def test_the_first_step_of_an_update_is_the_policy_gradient(update):
    """Ratios are 1: the loss is -A, and the gradient by each log-probability -A / T."""
    inputs = attrs.evolve(update([1.5, 0.5], [1.0, -3.0], [(0.0, 0.0, 0.0)] * 2), proximal_token_logps=None)
    loss, metrics = reduce_step(PPO()(inputs), inputs)
    (gradient,) = torch.autograd.grad(loss, inputs.token_logps)
    assert loss.item() == 1.0 and gradient.tolist() == [-0.5, 1.5]
    assert metrics["val/ratio"].item() == 1.0 and metrics["policy/approxkl_avg"].item() == 0.0


def test_entropy_is_logged_where_it_is_asked_for(update):
    inputs = attrs.evolve(update([1.0, 1.0], [1.0, 1.0], [(0.0, 0.0, 0.0)] * 2), token_entropy=torch.tensor([1.0, 2.0]))
    assert reduce_step(PPO(log_entropy=True)(inputs), inputs)[1]["policy/entropy_avg"].item() == 1.5
    assert PPO(log_entropy=True).needs == PPO().needs | Needs.ENTROPY
    assert "policy/entropy_avg" not in PPO()(inputs).metrics


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(10.0, 0.1 * 1.02), (2.2, 0.1 * 1.01), (2.0, 0.1), (1.0, 0.1 * 0.98)],
    ids=["held at +0.2", "above", "on target", "held at -0.2"],
)
def test_the_coefficient_is_steered_towards_the_target(rollouts, divergence, expected):
    """kl_coef (1 + clip(KL / 2 - 1, -0.2, 0.2) n / horizon), for n = 1 completion of 10."""
    method = PPO(kl_coef=0.1, target_kl=2.0, kl_horizon=10)
    inputs = rollouts([[(-1.0, -1 - divergence, 0.0)]], [[0.0]], state=method.initial_state())
    assert method.advantages(inputs).state == {"kl_coef": pytest.approx(expected)}


def test_the_steered_coefficient_is_the_one_that_counts(rollouts):
    """0.3 x 2 nats; more completions than the horizon count as the horizon, so that the coefficient stays positive."""
    method = PPO(kl_coef=0.1, target_kl=100.0, kl_horizon=1, lam=0.0, whiten_advantages=False)
    found = method.advantages(rollouts([[(-1.0, -3.0, 0.0)]] * 9, [[0.0]] * 9, state={"kl_coef": 0.3}))
    assert found.values.tolist() == pytest.approx([-0.6] * 9)
    assert found.metrics["objective/kl_coef"].values.item() == 0.3
    assert found.state == {"kl_coef": pytest.approx(0.3 * 0.8)}


def test_without_a_target_there_is_no_state(rollouts):
    assert PPO().initial_state() == {}
    found = PLAIN.advantages(rollouts([BRANCH], [[1.0]], state={"kl_coef": 9.0}))
    assert found.state is None and found.values.tolist() == pytest.approx([-0.35, 0.0, 1.3])


def test_without_a_penalty_no_reference_is_read(rollouts):
    method = PPO(kl_coef=0.0, lam=0.0, whiten_advantages=False)
    assert method.rollout_needs == Needs.REWARDS | Needs.VALUES | Needs.NO_LOGPS
    assert PPO().rollout_needs == Needs.REWARDS | Needs.VALUES | Needs.REFERENCE_LOGPS
    found = method.advantages(rollouts([[(nan, nan, 0.5)]], [[2.0]]))
    assert found.values.tolist() == [1.5]
    assert set(found.metrics) == {"objective/scores", "objective/rlhf_reward"}


def test_what_core_reads():
    method = PPO(num_ppo_epochs=3, num_mini_batches=2)
    assert (method.num_iterations, method.num_minibatches, method.critic) == (3, 2, "separate")
    assert (PPO().num_iterations, PPO().num_minibatches, PPO().num_sample_generations) == (4, 1, 10)
    assert PPO().needs == Needs.PROXIMAL_LOGPS | Needs.VALUES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_kl": 6.0, "kl_coef": 0.0}, "target_kl is 6, but kl_coef is 0, .* set kl_coef above 0, or leave target_kl out"),
        (
            {"kl_coef": 0.0, "kl_estimator": "k3"},
            "kl_estimator is k3, but kl_coef 0, which .* does not read it",
        ),
        ({"kl_horizon": 5}, "kl_horizon is 5, but a run without target_kl does not read it; leave it out, or set target_kl"),
        (
            {"critic": "shared", "critic_model": "models/reward"},
            "critic_model is 'models/reward', but a shared critic is the policy's own model; leave it out, or set critic to",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PPO(**settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kl_coef", -0.1),
        ("target_kl", 0.0),
        ("kl_horizon", 0),
        ("cliprange", 0.0),
        ("vf_coef", -1.0),
        ("cliprange_value", 0.0),
        ("gamma", 1.1),
        ("gamma", 0.0),
        ("lam", 1.1),
        ("num_ppo_epochs", 0),
        ("num_mini_batches", 0),
        ("missing_eos_penalty", -1.0),
        ("num_sample_generations", -1),
        ("local_rollout_forward_batch_size", 0),
    ],
)
def test_values_out_of_bounds_are_refused(key, value):
    bounds = describe_bounds(getattr(PPO.__attrs_attrs__, key))
    with pytest.raises(ValueError, match=f"^{key} must be {bounds}, got"):
        PPO(**{key: value})
