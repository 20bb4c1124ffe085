"""The loss on numbers derived by hand, its metrics, and the settings that are refused."""

from __future__ import annotations

from math import log

import attrs
import pytest
import torch

from truing.settings import describe_bounds
from truing.testing import reduce_step
from truing_reinforce import RLOO, Reinforce

RATIOS = [[1.5, 0.5], [1.1]]
SEQUENCE = {"baseline": "none", "importance_sampling_level": "sequence"}


def numbers(metrics):
    return {name: metric.item() for name, metric in metrics.items()}


def gradient_of(loss, inputs):
    (gradient,) = torch.autograd.grad(loss, inputs.token_logps)
    return gradient.tolist()


def test_tokens(update):
    """Advantages 2 and -1 of the completions: -min(3, 2.4), -min(1, 1.6), -min(-1.1, -1.1); the first one is clipped, above."""
    inputs = update(RATIOS, [2.0, -1.0])
    output = Reinforce(baseline="none")(inputs)
    assert output.terms[0].values.tolist() == pytest.approx([-2.4, -1.0, 1.1])
    loss, metrics = reduce_step(output, inputs)
    assert numbers(metrics) == pytest.approx(
        {"loss": -2.3 / 3, "clip_ratio/low_mean": 0.0, "clip_ratio/high_mean": 1 / 3, "clip_ratio/region_mean": 1 / 3}
    )
    assert gradient_of(loss, inputs) == pytest.approx([0.0, -1 / 3, 1.1 / 3])


BEHAVIOR = torch.tensor([-1.0, -1 - log(2), -1 - log(4)], dtype=torch.float64)
"""Log-probabilities of the sampler of which those at the start of the update are 1, 2 and 4 times."""


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        ("token_truncate", [1.0, 2.0, 3.0]),
        ("token_mask", [1.0, 2.0, 0.0]),
        ("sequence_truncate", [2.0, 2.0, 3.0]),
        ("sequence_mask", [2.0, 2.0, 0.0]),
    ],
)
def test_tokens_are_weighed_by_the_trainer_over_the_sampler(update, correction, weights):
    """Costs -2.4, -1 and 1.1 as above; ratios 1, 2 and 4, of completions 2 and 4, and 3 is the bound."""
    inputs = update(RATIOS, [2.0, -1.0], behavior_token_logps=BEHAVIOR)
    output = Reinforce(baseline="none", importance_sampling_correction=correction)(inputs)
    costs = [cost * weight for cost, weight in zip([-2.4, -1.0, 1.1], weights, strict=True)]
    assert output.terms[0].values.tolist() == pytest.approx(costs)
    mean = sum(weights) / 3 if correction.startswith("token") else (weights[0] + weights[2]) / 2
    metrics = reduce_step(output, inputs)[1]
    assert metrics["sampling/importance_sampling_ratio/mean"].item() == pytest.approx(mean)
    assert metrics["sampling/sampling_logp_difference/mean"].item() == pytest.approx(3 * log(2) / 3)


def test_completions_are_weighed_as_wholes(update):
    """Costs 1.6 and -1.1 as below, weighed 2 and 3."""
    inputs = update(RATIOS, [-2.0, 1.0], behavior_token_logps=BEHAVIOR)
    for method in (
        Reinforce(**SEQUENCE, importance_sampling_correction="sequence_truncate"),
        RLOO(importance_sampling_correction="sequence_truncate"),
    ):
        assert method(inputs).terms[0].values.tolist() == pytest.approx([3.2, -3.3])
    for made in (
        lambda: Reinforce(**SEQUENCE, importance_sampling_correction="token_mask"),
        lambda: RLOO(importance_sampling_correction="token_mask"),
    ):
        with pytest.raises(ValueError, match="token_mask, but what is weighed here are whole completions; set it to sequence_mask"):
            made()


def test_tokens_with_advantages_of_their_own(update):
    """baseline batch: -min(1.5, 1.2), -min(-0.5, -0.8), -2.2: clipped above and below."""
    inputs = update(RATIOS, [1.0, -1.0, 2.0])
    output = Reinforce()(inputs)
    assert output.terms[0].values.tolist() == pytest.approx([-1.2, 0.8, -2.2])
    metrics = reduce_step(output, inputs)[1]
    assert metrics["clip_ratio/low_mean"].item() == pytest.approx(1 / 3)
    assert metrics["clip_ratio/region_mean"].item() == pytest.approx(2 / 3)


def test_completions(update):
    """Ratios 1.5 x 0.5 = 0.75 and 1.1 with advantages -2 and 1: -min(-1.5, -1.6) and -1.1, the first clipped, below."""
    inputs = update(RATIOS, [-2.0, 1.0])
    for method in (Reinforce(**SEQUENCE), RLOO()):
        output = method(inputs)
        loss, metrics = reduce_step(output, inputs)
        assert output.terms[0].values.tolist() == pytest.approx([1.6, -1.1])
        assert loss.item() == pytest.approx(0.25)
        assert gradient_of(loss, inputs) == pytest.approx([0.0, 0.0, -0.55])
        assert metrics["clip_ratio/low_mean"].item() == metrics["clip_ratio/region_mean"].item() == 0.5
        assert metrics["clip_ratio/high_mean"].item() == 0.0


def test_upper_bound_of_its_own(update):
    """1.5 may rise to 1.4, and 0.5 fall to 0.9 with a negative advantage."""
    output = Reinforce(epsilon=0.1, epsilon_high=0.4)(update([[1.5, 0.5]], [1.0, -1.0]))
    assert output.terms[0].values.tolist() == pytest.approx([-1.4, 0.9])


@pytest.mark.parametrize(
    ("method", "expected"),
    [(Reinforce(baseline="none"), [-2 / 3, -2 / 3, 1 / 3]), (RLOO(), [-1.0, -1.0, 0.5])],
    ids=["token", "sequence"],
)
def test_the_first_step_of_an_update_is_the_policy_gradient(update, method, expected):
    """-A grad log pi: over three tokens, or over two completions, one of two tokens: one direction, two lengths."""
    inputs = attrs.evolve(update(RATIOS, [2.0, -1.0]), proximal_token_logps=None)
    assert gradient_of(reduce_step(method(inputs), inputs)[0], inputs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [(None, log(2) ** 2 / 2, log(2)), ("k2", log(2) ** 2 / 2, log(2)), ("k3", log(2) - 0.5, 0.5)],
)
def test_divergence_in_the_loss(update, kind, value, slope):
    """x = ln 2 of one token in two: k2 is x^2 / 2 and slopes with x, k3 exp(-x) - 1 + x with 1 - exp(-x)."""
    inputs = attrs.evolve(update([[1.0, 1.0]], [0.0, 0.0]), reference_token_logps=torch.tensor([-1 - log(2), -1.0]))
    method = Reinforce(beta=0.5, kl_in="loss", kl_estimator=kind)
    loss, metrics = reduce_step(method(inputs), inputs)
    assert loss.item() == pytest.approx(0.5 * value / 2)
    assert metrics["kl"].item() == pytest.approx(value / 2)
    assert gradient_of(loss, inputs) == pytest.approx([0.25 * slope, 0.0])


def test_divergence_of_completions_in_the_loss_is_summed(update):
    """Two tokens of x^2 / 2 = 1/2 and 2: 2.5 for the one completion, 1.25 per token."""
    inputs = attrs.evolve(update([[1.0, 1.0]], [0.0]), reference_token_logps=torch.tensor([-2.0, -3.0]))
    loss, metrics = reduce_step(Reinforce(beta=0.1, kl_in="loss", **SEQUENCE)(inputs), inputs)
    assert (loss.item(), metrics["kl"].item()) == pytest.approx((0.25, 1.25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline_decay": 0.5}, "baseline_decay is 0.5, but baseline batch does not read it; leave it out, or set baseline to"),
        ({"normalize_advantages": True}, "but baseline batch has normalised them already; set one of the two"),
        (
            {"importance_sampling_level": "sequence"},
            "the advantages of baseline batch are those of tokens; set it to token, or take another baseline",
        ),
        (
            {"beta": 0.1, "kl_in": "loss", "kl_estimator": "k1"},
            "its gradient does not depend on the reference and is 0 on average; set it to k2 or k3, or kl_in to reward",
        ),
        (
            {"kl_in": "loss"},
            "kl_in is loss, but beta 0, which .* does not read it; leave it out, or set beta above 0",
        ),
        ({"kl_estimator": "k3"}, "kl_estimator is k3, but beta 0, which leaves the divergence out, does not read it"),
        ({"reward_clip_range": (1.0, 1.0)}, r"must be \[least, greatest\] with least < greatest, got \[1, 1\]"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Reinforce(**settings)


def test_rloo_refuses_a_range_that_is_none():
    with pytest.raises(ValueError, match=r"with least < greatest, got \[2, 1\]"):
        RLOO(reward_clip_range=(2.0, 1.0))


BOUNDED = [("beta", -0.1), ("epsilon", 0.0), ("epsilon_high", 0.0), ("num_iterations", 0), ("num_minibatches", 0)]


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [*((method, *bounded) for method in (Reinforce, RLOO) for bounded in BOUNDED), (Reinforce, "baseline_decay", 1.0)],
)
def test_values_out_of_bounds_are_refused(method, key, value):
    bounds = describe_bounds(getattr(method.__attrs_attrs__, key))
    with pytest.raises(ValueError, match=f"^{key} must be {bounds}, got"):
        method(**{key: value})
