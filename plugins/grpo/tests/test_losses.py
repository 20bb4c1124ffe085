"""Every loss type on numbers derived by hand.

Two completions. The first has the advantage 1 and two tokens whose ratios w are 3/2 and 1, the second -2 and three: 1/2, 3/2, 1.
A token had the probability 1/4 at the start of the update, so that it has w / 4 now. epsilon is 0.2.
"""

from __future__ import annotations

from math import e, exp, log, sqrt

import pytest

from truing_grpo import GRPO

RATIOS, ADVANTAGES = [[1.5, 1.0], [0.5, 1.5, 1.0]], [1.0, -2.0]
LOGPS = [log(w / 4) for branch in RATIOS for w in branch]


def loss_of(method, inputs, reduced):
    return reduced(method(inputs), inputs)[0].item()


def costs(method, inputs):
    (term,) = method(inputs).terms
    assert (term.per, term.weight) == ("token", 1.0)
    return term.values.tolist()


@pytest.fixture
def inputs(ratios):
    return ratios(RATIOS, ADVANTAGES)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_a_token_costs_the_worse_of_its_ratio_and_the_clipped_one(inputs, reduced, loss_type):
    """A = 1: -min(1.5, 1.2), -1. A = -2: -min(-1, -1.6), -min(-3, -2.4), 2. The mean over the five tokens is 4.4 / 5."""
    assert costs(GRPO(loss_type=loss_type), inputs) == pytest.approx([-1.2, -1.0, 1.6, 3.0, 2.0])
    assert loss_of(GRPO(loss_type=loss_type), inputs, reduced) == pytest.approx(0.88)


def test_grpo_is_the_mean_over_completions_of_the_mean_over_tokens(inputs, reduced):
    """(-2.2 / 2 + 6.6 / 3) / 2."""
    assert loss_of(GRPO(loss_type="grpo"), inputs, reduced) == pytest.approx(0.55)


def test_luspo_is_the_mean_over_completions_of_the_sum_over_tokens(inputs, reduced):
    """(-2.2 + 6.6) / 2."""
    assert loss_of(GRPO(loss_type="luspo"), inputs, reduced) == pytest.approx(2.2)


def test_dr_grpo_divides_by_what_completions_may_have(inputs, reduced):
    """4.4 / (2 x 10)."""
    assert loss_of(GRPO(loss_type="dr_grpo"), inputs, reduced) == pytest.approx(0.22)


def test_epsilon_high_is_the_upper_bound_alone(inputs):
    """1.5 is below 1.6; the lower bound stays 0.8."""
    assert costs(GRPO(epsilon_high=0.6), inputs) == pytest.approx([-1.5, -1.0, 1.6, 3.0, 2.0])


def test_epsilon_is_both_bounds_where_the_upper_one_is_null(inputs):
    """0.4: -min(1.5, 1.4); -min(-1, -1.2)."""
    assert costs(GRPO(epsilon=0.4), inputs) == pytest.approx([-1.4, -1.0, 1.2, 3.0, 2.0])


def test_delta_bounds_a_ratio_whose_advantage_is_negative(inputs):
    """-min(1.3 x -2, 1.2 x -2) for the fourth; the first is clipped at 1.2 before."""
    assert costs(GRPO(delta=1.3), inputs) == pytest.approx([-1.2, -1.0, 1.6, 2.6, 2.0])


def test_clipped_tokens_have_no_gradient(inputs, reduced):
    """The others -A w / 5."""
    reduced(GRPO()(inputs), inputs)[0].backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([0, -1 / 5, 0, 3 / 5, 2 / 5])


def test_gspo_clips_the_geometric_mean_of_a_completions_ratios(inputs, reduced):
    """sqrt(3/2) is above 1.2; (3/4)^(1/3) is about 0.91: (-1.2 + 2 (3/4)^(1/3)) / 2."""
    expected = (-1.2 + 2 * 0.75 ** (1 / 3)) / 2
    assert loss_of(GRPO(loss_type="gspo"), inputs, reduced) == pytest.approx(expected)
    assert loss_of(GRPO(loss_type="grpo", importance_sampling_level="sequence"), inputs, reduced) == pytest.approx(expected)


def test_gspo_shares_a_completions_gradient_among_its_tokens(inputs, reduced):
    """d/dlogp of 2 W / 2 with W = exp(mean of three) is W / 3; the first completion is clipped."""
    reduced(GRPO(loss_type="gspo")(inputs), inputs)[0].backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([0, 0] + [0.75 ** (1 / 3) / 3] * 3)


def test_a_ratio_of_the_sequence_counts_for_each_token_in_the_other_types(inputs, reduced):
    """dapo: (2 x -1.2 + 3 x 2 (3/4)^(1/3)) / 5; luspo: the same / 2."""
    total = -2.4 + 6 * 0.75 ** (1 / 3)
    for loss_type, count in (("dapo", 5), ("luspo", 2), ("dr_grpo", 20)):
        method = GRPO(loss_type=loss_type, importance_sampling_level="sequence")
        assert loss_of(method, inputs, reduced) == pytest.approx(total / count)


def test_cispo_weighs_log_probabilities_by_a_bounded_ratio(inputs, reduced):
    """-min(w, 1.25) A log(w / 4): weights 1.25, 1, 0.5, 1.25, 1."""
    method, weights = GRPO(loss_type="cispo", epsilon_high=1.25), [1.25, 1.0, -2 * 0.5, -2 * 1.25, -2 * 1.0]
    assert costs(method, inputs) == pytest.approx([-weight * logp for weight, logp in zip(weights, LOGPS, strict=True)])
    reduced(method(inputs), inputs)[0].backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([-weight / 5 for weight in weights])


def test_sapo_fades_a_ratio_out(ratios, reduced):
    """Temperatures 1 and 2: 4 sigmoid(ln 3) = 3 at w = 1 + ln 3; 2 sigmoid(-ln 2) = 2/3 at w = 1 - ln 2 / 2; at w = 1 it is 2 / t.

    A = 1: (-3 - 2) / 2; A = -2: 2 (2/3 + 1) / 2 = 5/3.
    """
    inputs = ratios([[1 + log(3), 1.0], [1 - log(2) / 2, 1.0]], ADVANTAGES)
    method = GRPO(loss_type="sapo", sapo_temperature_neg=2.0)
    assert loss_of(method, inputs, reduced) == pytest.approx((-5 / 2 + 5 / 3) / 2)


def test_sapo_has_the_plain_gradient_where_the_policy_has_not_moved(ratios, reduced):
    inputs = ratios([[1.0, 1.0], [1.0]], ADVANTAGES)
    reduced(GRPO(loss_type="sapo")(inputs), inputs)[0].backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([-1 / 4, -1 / 4, 1.0])


def test_vespo_weighs_a_completion_by_the_product_of_its_ratios(inputs, reduced):
    """W = 3/2 with k = 2, lambda = 3: 9/4 e^(-3/2); W = 3/4 with k = 3, lambda = 2: 27/64 e^(1/2)."""
    weights = [9 / 4 * exp(-1.5)] * 2 + [-2 * 27 / 64 * sqrt(e)] * 3
    output = GRPO(loss_type="vespo")(inputs)
    assert output.terms[0].values.tolist() == pytest.approx([-w * logp for w, logp in zip(weights, LOGPS, strict=True)])
    _, metrics = reduced(output, inputs)
    assert metrics["vespo/phi_seq_mean"].item() == pytest.approx((weights[0] + 27 / 64 * sqrt(e)) / 2)


def test_vespos_settings(inputs):
    """W = 3/2 with k = 1, lambda = 1: 3/2 e^(-1/2); W = 3/4 with k = 2, lambda = 4: 9/16 e."""
    method = GRPO(loss_type="vespo", vespo_k_pos=1.0, vespo_lambda_pos=1.0, vespo_k_neg=2.0, vespo_lambda_neg=4.0)
    values = method(inputs).metrics["vespo/phi_seq_mean"].values.tolist()
    assert values == pytest.approx([1.5 * exp(-0.5), 9 / 16 * e])


def test_vespos_product_is_bounded(ratios):
    """Beyond e^20, and below 1e-8, the weight is 0 as good as: 1e-8 with k = 2, lambda = 3 is 1e-16 e^3."""
    inputs = ratios([[1e30], [1e-30]], [1.0, 1.0])
    values = GRPO(loss_type="vespo")(inputs).metrics["vespo/phi_seq_mean"].values.tolist()
    assert values == pytest.approx([0.0, 1e-16 * exp(3)], rel=1e-6)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "cispo", "vespo"])
def test_in_the_first_step_it_is_the_policy_gradient(sampled, reduced, loss_type):
    """Without log-probabilities of a start of the update they are the policy's own: w = 1, the gradient -A / 5."""
    inputs = sampled([[-1.0, -2.0], [-1.0, -3.0, -0.5]], advantages=ADVANTAGES)
    method = GRPO(loss_type=loss_type, **{"epsilon_high": 5.0} if loss_type == "cispo" else {})
    reduced(method(inputs), inputs)[0].backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([-1 / 5] * 2 + [2 / 5] * 3)


def test_clip_ratios(ratios, reduced):
    """Of six tokens the first is too high with A > 0, the fourth too low with A < 0; two are so with the other sign of A."""
    inputs = ratios([[1.5, 1.0, 0.5], [0.5, 1.5, 1.0]], ADVANTAGES)
    _, metrics = reduced(GRPO()(inputs), inputs)
    assert {name: value.item() for name, value in metrics.items() if name != "loss"} == pytest.approx(
        {"clip_ratio/low_mean": 1 / 6, "clip_ratio/high_mean": 1 / 6, "clip_ratio/region_mean": 1 / 3}
    )


def test_clip_ratios_of_sequences(inputs, reduced):
    """The first of two completions."""
    _, metrics = reduced(GRPO(loss_type="gspo")(inputs), inputs)
    assert {name: value.item() for name, value in metrics.items() if name != "loss"} == pytest.approx(
        {"clip_ratio/low_mean": 0, "clip_ratio/high_mean": 0.5, "clip_ratio/region_mean": 0.5}
    )


def test_the_clip_ratio_of_cispo(inputs, reduced):
    """The first token alone is above 1.25 with A > 0; sapo clips nothing."""
    _, metrics = reduced(GRPO(loss_type="cispo", epsilon_high=1.25)(inputs), inputs)
    assert metrics["cispo_clip_ratio"].item() == pytest.approx(0.2)
    assert not GRPO(loss_type="sapo")(inputs).metrics


def test_metrics_carry_no_gradient(ratios):
    more = {"reference_token_logps": [[-1.0] * len(branch) for branch in RATIOS]}
    more |= {"behavior_token_logps": more["reference_token_logps"], "token_entropy": more["reference_token_logps"]}
    for loss_type, bound in (("dapo", {}), ("cispo", {"epsilon_high": 2.0}), ("vespo", {})):
        correction = {"importance_sampling_correction": "token_mask", "off_policy_mask_threshold": 0.1}
        method = GRPO(loss_type=loss_type, beta=0.1, entropy_coef=0.1, **bound, **correction)
        output = method(ratios(RATIOS, ADVANTAGES, **more))
        assert [name for name, term in output.metrics.items() if term.values.requires_grad] == []
        assert output.terms[0].values.requires_grad
