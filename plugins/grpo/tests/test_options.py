"""The KL divergence, entropy, masks and corrections, on numbers derived by hand."""

from __future__ import annotations

from math import exp, log

import attrs
import pytest
import torch

from truing.kl import kl_estimate
from truing_grpo import GRPO
from truing_grpo.regularisers import high_entropy

LN2 = log(2)
RATIOS, ADVANTAGES = [[1.5, 1.0], [0.5, 1.5, 1.0]], [1.0, -2.0]
PLAIN = [-1.2, -1.0, 1.6, 3.0, 2.0]
"""What these tokens cost by `dapo`: test_losses derives it."""


def terms_of(method, inputs):
    return [term.values.tolist() for term in method(inputs).terms]


@pytest.mark.parametrize(("estimator", "value"), [("k1", LN2), ("k2", LN2**2 / 2), ("k3", LN2 - 1 / 2)])
def test_kl_estimators(ratios, reduced, estimator, value):
    """The policy gives every token twice the reference's probability: x = ln 2, k3 = 1/2 - 1 + ln 2; weighed by w."""
    inputs = ratios([[1.5, 1.0]], [1.0], reference_token_logps=[[log(1.5 / 8), log(1 / 8)]])
    method = GRPO(beta=0.5, kl_estimator=estimator)
    assert terms_of(method, inputs) == [pytest.approx([-1.2 + 0.5 * 1.5 * value, -1.0 + 0.5 * value])]
    assert reduced(method(inputs), inputs)[1]["kl"].item() == pytest.approx(1.25 * value)


def test_kl_without_the_correction(ratios, reduced):
    """k3 alone."""
    inputs = ratios([[1.5, 1.0]], [1.0], reference_token_logps=[[log(1.5 / 8), log(1 / 8)]])
    method = GRPO(beta=0.5, use_bias_correction_kl=False)
    assert terms_of(method, inputs) == [pytest.approx([-1.2 + 0.5 * (LN2 - 0.5), -1.0 + 0.5 * (LN2 - 0.5)])]
    assert reduced(method(inputs), inputs)[1]["kl"].item() == pytest.approx(LN2 - 0.5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_corrected_kl_has_the_gradient_of_the_divergence(sampled, estimator):
    """A policy p over two tokens, a reference q = (1/2, 1/2), p = (3/4, 1/4): dKL/dz_i = p_i (log p_i/q_i - KL) by its logits z.

    The mean over both tokens, weighed by p, of the estimate's gradient must be that.
    """
    logits = torch.tensor([log(3.0), 0.0], dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(0)
    inputs = attrs.evolve(sampled([[0.0], [0.0]], advantages=[0.0, 0.0], reference_token_logps=[[-LN2], [-LN2]]), token_logps=logps)
    (term,) = GRPO(beta=1.0, kl_estimator=estimator)(inputs).terms
    (gradient,) = torch.autograd.grad((term.values * logps.detach().exp()).sum(), logits)
    own = torch.tensor([3 / 4, 1 / 4], dtype=torch.float64)
    kl = (own * (own * 2).log()).sum()
    assert gradient.tolist() == pytest.approx((own * ((own * 2).log() - kl)).tolist())


def test_k3_is_never_negative_in_float32():
    """As exp(-x) - 1 + x it is for one in nine log-ratios of the order of 1e-4."""
    small = torch.linspace(-1e-3, 1e-3, 10_001, dtype=torch.float32)
    assert (kl_estimate("k3", small) >= 0).all()
    assert ((-small).exp() - 1 + small < 0).any()


def test_entropy_bonus(ratios, reduced):
    """Minus 0.1 times the mean of 1 to 5, that is 3; policy_loss is the loss without it."""
    inputs = ratios(RATIOS, ADVANTAGES, token_entropy=[[1.0, 2.0], [3.0, 4.0, 5.0]])
    loss, metrics = reduced(GRPO(entropy_coef=0.1)(inputs), inputs)
    assert loss.item() == pytest.approx(0.88 - 0.3)
    assert (metrics["entropy"].item(), metrics["policy_loss"].item()) == pytest.approx((3.0, 0.88))


@pytest.mark.parametrize(("share", "chosen"), [(0.0, "1"), (0.2, "1"), (0.5, "124"), (0.74, "124"), (0.75, "1234")])
def test_the_tokens_of_the_greatest_entropy(ratios, reduced, share, chosen):
    """Of T = 5, floor(4 share) + 1 stay in, by entropy tokens 1, 4, 2, 3, 0; the loss is still divided by five."""
    inputs = ratios(RATIOS, ADVANTAGES, token_entropy=[[0.1, 0.5], [0.3, 0.2, 0.4]])
    method = GRPO(top_entropy_quantile=share)
    kept = [cost * (str(token) in chosen) for token, cost in enumerate(PLAIN)]
    assert terms_of(method, inputs) == [pytest.approx(kept)]
    assert reduced(method(inputs), inputs)[0].item() == pytest.approx(sum(kept) / 5)
    assert method.scope == "step" and GRPO().scope == "example"


def test_equal_entropies_stay_together(ratios):
    inputs = ratios(RATIOS, ADVANTAGES, token_entropy=[[0.3, 0.3], [0.3, 0.1, 0.3]])
    assert high_entropy(inputs, 0.0).tolist() == [True, True, True, False, True]


def test_the_bonus_is_of_the_tokens_that_stay(ratios, reduced):
    """Those with 0.5, 0.3 and 0.4; the KL divergence is of all: k3 of x = 0 is 0."""
    inputs = ratios(RATIOS, ADVANTAGES, token_entropy=[[0.1, 0.5], [0.3, 0.2, 0.4]])
    loss, metrics = reduced(GRPO(top_entropy_quantile=0.5, entropy_coef=0.1)(inputs), inputs)
    assert loss.item() == pytest.approx((-1.0 + 1.6 + 2.0) / 5 - 0.1 * 0.4)
    assert metrics["entropy"].item() == pytest.approx(0.3)


def test_a_quantile_of_more_entropies_than_torch_quantile_takes(sampled):
    """2^24 + 1 of them."""
    size = 2**24 + 1
    inputs = attrs.evolve(
        sampled([[-1.0]]),
        sequence_ids=torch.zeros(size, dtype=torch.int64),
        token_entropy=torch.arange(size, dtype=torch.float32).flip(0),
    )
    with pytest.raises(RuntimeError, match="too large"):
        inputs.token_entropy.quantile(0.5)
    assert high_entropy(inputs, 0.5).sum() == 2**23 + 1


def test_off_policy_completions_are_left_out_where_the_advantage_is_negative(ratios, reduced):
    """The sampler's probability over the policy's is e^0.3 on average over the second's tokens; the first's is more, with A > 0."""
    behavior = [[log(1.5 / 4) + 2, log(1 / 4) + 2], [log(0.5 / 4) + 0.9, log(1.5 / 4), log(1 / 4)]]
    inputs = ratios(RATIOS, ADVANTAGES, behavior_token_logps=behavior)
    for threshold, kept in ((0.29, 0), (0.31, 1)):
        method = GRPO(off_policy_mask_threshold=threshold)
        expected = PLAIN[:2] + [cost * kept for cost in PLAIN[2:]]
        assert terms_of(method, inputs) == [pytest.approx(expected)]
        assert reduced(method(inputs), inputs)[1]["off_policy_mask_ratio"].item() == (1 - kept) / 2


RATIO = [[2.0, 0.5], [1.25, 4.0, 1.0]]
"""Probabilities at the start of the update over the sampler's; products 1 and 5."""


@pytest.mark.parametrize(
    ("correction", "low", "weights"),
    [
        ("token_truncate", None, [2.0, 0.5, 1.25, 3.0, 1.0]),
        ("token_truncate", 0.75, [2.0, 0.75, 1.25, 3.0, 1.0]),
        ("token_mask", None, [2.0, 0.5, 1.25, 0.0, 1.0]),
        ("token_mask", 0.75, [2.0, 0.0, 1.25, 0.0, 1.0]),
        ("sequence_truncate", None, [1.0, 1.0, 3.0, 3.0, 3.0]),
        ("sequence_truncate", 2.0, [2.0, 2.0, 3.0, 3.0, 3.0]),
        ("sequence_mask", None, [1.0, 1.0, 0.0, 0.0, 0.0]),
        ("sequence_mask", 2.0, [0.0] * 5),
    ],
)
def test_corrections_for_the_sampler(ratios, reduced, correction, low, weights):
    """Within 3 above, and `low` below; the metric is a mean over tokens, or over completions."""
    behavior = [[log(1 / 4 / ratio) for ratio in branch] for branch in RATIO]
    inputs = ratios(RATIOS, ADVANTAGES, behavior_token_logps=behavior)
    method = GRPO(importance_sampling_correction=correction, importance_sampling_clip_min=low)
    assert terms_of(method, inputs) == [pytest.approx([cost * weight for cost, weight in zip(PLAIN, weights, strict=True)])]
    _, metrics = reduced(method(inputs), inputs)
    mean = sum(weights) / 5 if correction.startswith("token") else (weights[0] + weights[-1]) / 2
    assert metrics["sampling/importance_sampling_ratio/mean"].item() == pytest.approx(mean)
    assert metrics["sampling/sampling_logp_difference/mean"].item() == pytest.approx((2 * LN2 + log(5)) / 5)


def test_in_one_step_the_policy_itself_is_compared_with_the_sampler(sampled):
    """exp(-1 + 1.5), and 1 for the token that the sampler gave no number for."""
    inputs = sampled([[-1.0, -1.0]], advantages=[2.0], behavior_token_logps=[[-1.5, float("nan")]])
    method = GRPO(importance_sampling_correction="token_truncate")
    assert terms_of(method, inputs) == [pytest.approx([-2 * exp(0.5), -2.0])]


def test_vespo_takes_the_correction_into_its_weight(ratios):
    """W = 3/2 x 2 x 1/2: phi = 9/4 e^(-3/2); W = 3/4 x 5/4 x 3 = 45/16 with k = 3, lambda = 2."""
    behavior = [[log(1 / 4 / ratio) for ratio in branch] for branch in RATIO]
    inputs = ratios(RATIOS, ADVANTAGES, behavior_token_logps=behavior)
    output = GRPO(loss_type="vespo", importance_sampling_correction="token_truncate")(inputs)
    weights = [9 / 4 * exp(-1.5), (45 / 16) ** 3 * exp(2 * (1 - 45 / 16))]
    assert output.metrics["vespo/phi_seq_mean"].values.tolist() == pytest.approx(weights)
    assert output.terms[0].values[0].item() == pytest.approx(-weights[0] * log(1.5 / 4))


def test_the_kl_divergence_is_of_all_tokens_whatever_is_masked(ratios):
    """k3 at x = ln 2, times w, also where the correction, the entropy and the policy leave the token out."""
    reference = [[log(w / 8) for w in branch] for branch in RATIOS]
    inputs = ratios(
        RATIOS,
        ADVANTAGES,
        reference_token_logps=reference,
        behavior_token_logps=[[0.0] * len(branch) for branch in RATIOS],
        token_entropy=[[1.0] * len(branch) for branch in RATIOS],
    )
    method = GRPO(
        beta=1.0,
        off_policy_mask_threshold=0.1,
        top_entropy_quantile=0.5,
        importance_sampling_correction="token_mask",
        importance_sampling_clip_min=0.5,
    )
    assert terms_of(method, inputs) == [pytest.approx([w * (LN2 - 0.5) for branch in RATIOS for w in branch])]


def test_ratios_that_are_too_large_are_held(ratios):
    """At e^20; what is not clipped has no gradient there."""
    inputs = ratios([[1e30, 1.0]], [-1.0])
    (term,) = GRPO()(inputs).terms
    assert term.values.tolist() == pytest.approx([exp(20), 1.0])
    term.values.sum().backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([0.0, 1.0])


def test_dapo_counts_tokens_and_gspo_completions(ratios, reduced):
    """A long bad completion beside a short good one, on policy: (-1 + 3 x 2) / 4, and (-1 + 2) / 2."""
    inputs = ratios([[1.0], [1.0] * 3], [1.0, -2.0])
    assert reduced(GRPO()(inputs), inputs)[0].item() == pytest.approx(5 / 4)
    assert reduced(GRPO(loss_type="gspo")(inputs), inputs)[0].item() == pytest.approx(1 / 2)


def test_a_completion_without_counted_tokens_costs_nothing(ratios, reduced):
    """All of its tokens were a tool's: it counts among the completions of grpo, with 0."""
    inputs = ratios([[1.0], []], [1.0, -2.0])
    assert reduced(GRPO(loss_type="grpo")(inputs), inputs)[0].item() == pytest.approx(-1 / 2)
    assert GRPO(loss_type="gspo")(inputs).terms[0].values.tolist() == [-1.0, 0.0]
    assert GRPO(loss_type="vespo")(inputs).metrics["vespo/phi_seq_mean"].values[1].item() == 1.0
