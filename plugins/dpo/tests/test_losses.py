"""Every loss type and divergence on numbers derived by hand.

Two pairs, the second the first with chosen and rejected exchanged. beta = 1/2. The good branch has two tokens and the log-ratio
2 ln 3, so sigmoid(beta a) = 3/4 and sigmoid(-beta a) = 1/4; the bad one has four tokens and -2 ln 2, so sigmoid(beta b) = 1/3 and
sigmoid(-beta b) = 2/3. The margin is d = 2 ln 6, so sigmoid(beta d) = 6/7 and sigmoid(-beta d) = 1/7; ln(7/6) and ln 7 are their
negative logarithms. Per token: a / n_w = ln 3, b / n_l = -ln 2 / 2. The exchange turns d into -d.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import get_args

import pytest
import torch

from truing_dpo import DPO, IPO
from truing_dpo.loss_types import LossType
from truing_dpo.losses import LOSSES

LN2, LN3, LN6, LN7 = log(2), log(3), log(6), log(7)
GOOD = [-1.0, -1.5], [-1.0 - LN3, -1.5 - LN3]  # policy, reference
BAD = [-2.0, -1.0, -3.0, -0.5], [-2.0 + LN2 / 2, -1.0 + LN2 / 2, -3.0 + LN2 / 2, -0.5 + LN2 / 2]
PAIRS = [(GOOD[0], BAD[0], GOOD[1], BAD[1]), (BAD[0], GOOD[0], BAD[1], GOOD[1])]


def values(method, inputs):
    (term,) = method(inputs).terms
    assert term.per == "pair" and term.weight == 1.0
    return term.values.tolist()


def check(paired, loss_type, expected, **settings):
    assert values(DPO(beta=0.5, loss_type=loss_type, **settings), paired(PAIRS)) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_sigmoid(paired):
    """-ln 6/7; -ln 1/7."""
    check(paired, "sigmoid", [log(7 / 6), LN7])


def test_sigmoid_with_label_smoothing_is_conservative_dpo(paired):
    """0.9 x (-ln 6/7) + 0.1 x (-ln 1/7); then with 6/7 and 1/7 exchanged."""
    check(paired, "sigmoid", [0.9 * log(7 / 6) + 0.1 * LN7, 0.9 * LN7 + 0.1 * log(7 / 6)], label_smoothing=0.1)


def test_sigmoid_norm(paired):
    """beta (ln 3 + ln 2 / 2) = ln(sqrt 3 x 2^(1/4)) = ln k, and -ln sigmoid(ln k) = ln(1 + 1/k); -ln sigmoid(-ln k) = ln(1 + k)."""
    k = sqrt(3) * 2**0.25
    check(paired, "sigmoid_norm", [log(1 + 1 / k), log(1 + k)])
    check(
        paired,
        "sigmoid_norm",
        [0.8 * log(1 + 1 / k) + 0.2 * log(1 + k), 0.8 * log(1 + k) + 0.2 * log(1 + 1 / k)],
        label_smoothing=0.2,
    )


def test_hinge(paired):
    """beta d = ln 6 > 1 costs nothing; 1 + ln 6."""
    check(paired, "hinge", [0.0, 1 + LN6])


def test_ipo_averages_over_tokens(paired):
    """1 / (2 beta) = 1; (ln 3 + ln 2 / 2 - 1)^2; (-ln 2 / 2 - ln 3 - 1)^2. Sums would give (2 ln 6 - 1)^2."""
    expected = [(LN3 + LN2 / 2 - 1) ** 2, (LN3 + LN2 / 2 + 1) ** 2]
    check(paired, "ipo", expected)
    assert values(IPO(beta=0.5), paired(PAIRS)) == pytest.approx(expected, rel=1e-12)


def test_exo_pair(paired):
    """e = 1/10: 6/7 [ln 6/7 - ln 9/10] + 1/7 [ln 1/7 - ln 1/10]; 1/7 [ln 1/7 - ln 9/10] + 6/7 [ln 6/7 - ln 1/10]."""
    expected = [6 / 7 * log(60 / 63) + 1 / 7 * log(10 / 7), 1 / 7 * log(10 / 63) + 6 / 7 * log(60 / 7)]
    check(paired, "exo_pair", expected, label_smoothing=0.1)


def test_nca_pair(paired):
    """-ln 3/4 - 1/2 ln 1/4 - 1/2 ln 2/3 = ln(4/3 x 2 x sqrt(3/2)); -ln 1/3 - 1/2 ln 2/3 - 1/2 ln 1/4 = ln(3 x sqrt(3/2) x 2)."""
    check(paired, "nca_pair", [log(8 / 3 * sqrt(1.5)), log(6 * sqrt(1.5))])


def test_robust(paired):
    """e = 1/10: [9/10 ln(7/6) - 1/10 ln 7] / (8/10); [9/10 ln 7 - 1/10 ln(7/6)] / (8/10); with e = 0 it is `sigmoid`."""
    check(paired, "robust", [(9 * log(7 / 6) - LN7) / 8, (9 * LN7 - log(7 / 6)) / 8], label_smoothing=0.1)
    check(paired, "robust", [log(7 / 6), LN7])


def test_bco_pair(paired):
    """-ln 3/4 - ln 2/3 = ln 2; -ln 1/3 - ln 1/4 = ln 12."""
    check(paired, "bco_pair", [LN2, log(12)])


def test_sppo_hard(paired):
    """1 / (2 beta) = 1: (2 ln 3 - 1)^2 + (-2 ln 2 + 1)^2; (-2 ln 2 - 1)^2 + (2 ln 3 + 1)^2."""
    check(paired, "sppo_hard", [(2 * LN3 - 1) ** 2 + (2 * LN2 - 1) ** 2, (2 * LN2 + 1) ** 2 + (2 * LN3 + 1) ** 2])


def test_apo_zero(paired):
    """1 - 3/4 + 1/3 = 7/12; 1 - 1/3 + 3/4 = 17/12."""
    check(paired, "apo_zero", [7 / 12, 17 / 12])


def test_apo_down(paired):
    """3/4 + 1 - 6/7 = 25/28; 1/3 + 1 - 1/7 = 25/21."""
    check(paired, "apo_down", [25 / 28, 25 / 21])


SORTED_APART = [([-1.0], [-1.0], [-1.0 - LN6], [-1.0]), ([-1.0], [-1.0], [-1.0], [-1.0 - LN3])]
"""a = ln 6 and b = 0; a = 0 and b = ln 3. Margins of the policy 0 and 0, of the reference -ln 6 and ln 3."""


def test_aot_sorts_the_margins_of_policy_and_reference(paired):
    """Policy ln 6 and 0, reference 0 and ln 3 (pair by pair ln 6 and -ln 3): sorted 0 - 0 and ln 6 - ln 3.

    -ln 1/2, -ln 2/3; e = 1/10: 9/10 ln 3/2 + 1/10 ln 3. Beside them a batch that is sorted already.
    """
    crossed = [([-1.0], [-1.0 - LN6], [-1.0], [-1.0]), ([-1.0], [-1.0], [-1.0], [-1.0 - LN3])]
    assert values(DPO(beta=1, loss_type="aot"), paired(crossed)) == pytest.approx([LN2, log(3 / 2)])
    smoothed = DPO(beta=1, loss_type="aot", label_smoothing=0.1)
    assert values(smoothed, paired(crossed)) == pytest.approx([LN2, 0.9 * log(3 / 2) + 0.1 * LN3])
    assert values(DPO(beta=1, loss_type="aot"), paired(SORTED_APART)) == pytest.approx([log(7 / 6), log(4)])


def test_aot_unpaired_sorts_the_log_ratios_of_chosen_and_rejected(paired):
    """a sorted is 0, ln 6 and b sorted 0, ln 3: as above, where pair by pair they are ln 6 and -ln 3."""
    assert values(DPO(beta=1, loss_type="aot_unpaired"), paired(SORTED_APART)) == pytest.approx([LN2, log(3 / 2)])
    smoothed = DPO(beta=1, loss_type="aot_unpaired", label_smoothing=0.1)
    assert values(smoothed, paired(SORTED_APART)) == pytest.approx([LN2, 0.9 * log(3 / 2) + 0.1 * LN3])


def test_the_gradient_of_aot_goes_back_to_where_a_value_came_from(paired):
    """Sorted apart: a = ln 6 meets b = ln 3, and sigmoid(-ln 2) = 1/3; a = 0 meets b = 0, and sigmoid(0) = 1/2."""
    inputs = paired(SORTED_APART)
    (term,) = DPO(beta=1, loss_type="aot_unpaired")(inputs).terms
    term.values.sum().backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([-1 / 3, 1 / 2, -1 / 2, 1 / 3])


def test_discopop(paired):
    """tau = 1: m = sigmoid(ln 6) = 6/7: 1/7 ln 7/6 + 6/7 x 1/6; m = 1/7: 6/7 ln 7 + 1/7 x 6.

    tau = 1/2: m = sigmoid(2 ln 6) = 36/37: 1/37 ln 7/6 + 36/37 x 1/6; 36/37 ln 7 + 1/37 x 6.
    """
    check(paired, "discopop", [log(7 / 6) / 7 + 1 / 7, 6 / 7 * LN7 + 6 / 7], discopop_tau=1)
    check(paired, "discopop", [log(7 / 6) / 37 + 6 / 37, 36 / 37 * LN7 + 6 / 37], discopop_tau=0.5)


def test_exponents_of_discopop_are_held_at_80(ratios):
    """tau = 4, beta = 1: -d + d / 4 is 75 for d = -100, and 750 for -1000, where it is held; ln(1 + e^-d) = -d is added.

    The gradient by d is -1 - 3/4 e^75 in the first, and of the logistic part alone, -1, in the second.
    """
    inputs = ratios([(-100.0, 0.0), (-1000.0, 0.0)])
    (term,) = DPO(beta=1.0, loss_type="discopop", discopop_tau=4.0)(inputs).terms
    assert term.values.tolist() == pytest.approx([exp(75) + 100, exp(80) + 1000], rel=1e-9)
    (gradient,) = torch.autograd.grad(term.values.sum(), inputs.token_logps)
    assert gradient[::2].tolist() == pytest.approx([-1 - 0.75 * exp(75), -1.0], rel=1e-9)


def test_sft_is_the_mean_over_all_chosen_tokens(paired, reduced):
    """Chosen tokens cost 1 + 1.5 and 2 + 1 + 3 + 0.5: 9 over 6 tokens is 1.5; the mean of the pairs' means would be 1.4375."""
    inputs = paired(PAIRS)
    output = DPO(loss_type="sft")(inputs)
    (term,) = output.terms
    assert term.per == "chosen_token"
    assert reduced(output, inputs)[0].item() == pytest.approx(1.5)


def test_forward_kl(paired):
    """e^a = 9 and e^b = 1/4: A = 1 - 1/9 = 8/9, B = 1 - 4 = -3, d = 35/9; -ln sigmoid(35/18)."""
    check(paired, "sigmoid", [log(1 + exp(-35 / 18)), log(1 + exp(35 / 18))], f_divergence_type="forward_kl")
    check(paired, "hinge", [0.0, 1 + 35 / 18], f_divergence_type="forward_kl")


def test_js_divergence(paired):
    """A = ln 2 + ln 9/10 = ln 9/5, B = ln 2 + ln 1/5 = ln 2/5, d = ln 9/2, e^(beta d) = sqrt(9/2)."""
    check(paired, "sigmoid", [log(1 + sqrt(2 / 9)), log(1 + sqrt(9 / 2))], f_divergence_type="js_divergence")


def test_alpha_divergence(paired):
    """alpha = 1/2: A = (9^(-1/2) - 1) / (-1/2) = 4/3, B = (4^(1/2) - 1) / (-1/2) = -2, d = 10/3.

    alpha = 2: A = 9 - 1 = 8, B = 1/4 - 1 = -3/4, d = 35/4.
    """
    check(paired, "hinge", [0.0, 1 + 5 / 3], f_divergence_type="alpha_divergence")
    check(paired, "hinge", [0.0, 1 + 35 / 8], f_divergence_type="alpha_divergence", f_alpha_divergence_coef=2)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("ipo", [(8 / 18 + 3 / 4 - 1) ** 2, (-3 / 4 - 8 / 18 - 1) ** 2]),
        ("sigmoid_norm", [log(1 + exp(-(8 / 18 + 3 / 4) / 2)), log(1 + exp((8 / 18 + 3 / 4) / 2))]),
        ("robust", [log(1 + exp(-35 / 18)), log(1 + exp(35 / 18))]),
        ("discopop", [exp(-35 / 18), log(1 + exp(35 / 18))]),
    ],
)
def test_divergence_of_the_other_loss_types(paired, loss_type, expected):
    """forward_kl: A = 8/9 and B = -3; over 2 and 4 tokens, 8/18 and -3/4; beta d = 35/18.

    m of discopop is sigmoid(20 x 35/18), which differs from 1 by less than 1e-16.
    """
    check(paired, loss_type, expected, f_divergence_type="forward_kl")


def test_constants_of_a_divergence_count_where_lengths_differ(paired):
    """js_divergence over 2 and 4 tokens: (ln 9/5) / 2 - (ln 2/5) / 4 - 1, squared."""
    expected = (log(9 / 5) / 2 - log(2 / 5) / 4 - 1) ** 2
    method = DPO(beta=0.5, loss_type="ipo", f_divergence_type="js_divergence")
    assert values(method, paired(PAIRS[:1])) == pytest.approx([expected], rel=1e-12)


def test_divergence_of_exo_pair(paired):
    """js_divergence: d = ln 9/2 and beta = 2, so e^(beta d) = 81/4 and sigmoid(beta d) = 81/85; e = 1/10."""
    method = DPO(beta=2, loss_type="exo_pair", label_smoothing=0.1, f_divergence_type="js_divergence")
    expected = [
        81 / 85 * log(810 / (85 * 9)) + 4 / 85 * log(40 / 85),
        4 / 85 * log(40 / (85 * 9)) + 81 / 85 * log(810 / 85),
    ]
    assert values(method, paired(PAIRS)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha", "kind"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_ends_of_alpha_divergence(paired, alpha, kind):
    inputs = paired(PAIRS)
    ours = DPO(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha)
    assert values(ours, inputs) == values(DPO(f_divergence_type=kind), inputs)


def test_alpha_divergence_is_continuous_at_one(paired):
    inputs = paired(PAIRS)
    near = DPO(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 + 1e-10)
    assert values(near, inputs) == pytest.approx(values(DPO(), inputs), rel=1e-9)


def test_every_loss_type_has_a_formula():
    assert {*LOSSES, "sft"} == set(get_args(LossType))


def sigmoid_of(x):
    return 1 / (1 + exp(-x)) if x > -700 else exp(x)


NAIVE = {
    "sigmoid": lambda a, b, n, m, beta, e: -log(sigmoid_of(beta * (a - b))),
    "sigmoid_norm": lambda a, b, n, m, beta, e: -log(sigmoid_of(beta * (a / n - b / m))),
    "hinge": lambda a, b, n, m, beta, e: max(0, 1 - beta * (a - b)),
    "ipo": lambda a, b, n, m, beta, e: (a / n - b / m - 1 / (2 * beta)) ** 2,
    "exo_pair": lambda a, b, n, m, beta, e: (
        sigmoid_of(beta * (a - b)) * (log(sigmoid_of(beta * (a - b))) - log(1 - e))
        + sigmoid_of(beta * (b - a)) * (log(sigmoid_of(beta * (b - a))) - log(e))
    ),
    "nca_pair": lambda a, b, n, m, beta, e: (
        -log(sigmoid_of(beta * a)) - 0.5 * log(sigmoid_of(-beta * a)) - 0.5 * log(sigmoid_of(-beta * b))
    ),
    "robust": lambda a, b, n, m, beta, e: (
        (-(1 - e) * log(sigmoid_of(beta * (a - b))) + e * log(sigmoid_of(beta * (b - a)))) / (1 - 2 * e)
    ),
    "bco_pair": lambda a, b, n, m, beta, e: -log(sigmoid_of(beta * a)) - log(sigmoid_of(-beta * b)),
    "sppo_hard": lambda a, b, n, m, beta, e: (a - 0.5 / beta) ** 2 + (b + 0.5 / beta) ** 2,
    "discopop": lambda a, b, n, m, beta, e: (
        -log(sigmoid_of(beta * (a - b))) * (1 - sigmoid_of(beta * (a - b) / 0.05))
        + exp(-beta * (a - b)) * sigmoid_of(beta * (a - b) / 0.05)
    ),
    "apo_zero": lambda a, b, n, m, beta, e: 1 - sigmoid_of(beta * a) + sigmoid_of(beta * b),
    "apo_down": lambda a, b, n, m, beta, e: sigmoid_of(beta * a) + 1 - sigmoid_of(beta * (a - b)),
}
"""The formulas as TRL 1.16.0 computes them, in plain arithmetic; a, b, their lengths n, m, beta and the label smoothing e."""


@pytest.mark.parametrize("loss_type", NAIVE)
def test_agrees_with_the_formulas_of_trl(ratios, loss_type):
    """TRL's `sigmoid` has no label smoothing, so it is compared without; so is sigmoid_norm."""
    generator = torch.Generator().manual_seed(0)
    pairs = (torch.randn(200, 2, generator=generator, dtype=torch.float64) * 8).tolist()
    e = 0.05 if loss_type in ("exo_pair", "robust") else 0.0
    ours = values(DPO(beta=0.3, loss_type=loss_type, label_smoothing=e), ratios(pairs, lengths=(3, 5)))
    assert ours == pytest.approx([NAIVE[loss_type](a, b, 3, 5, 0.3, e) for a, b in pairs], rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_sorted_losses_agree_with_the_formulas_of_trl(paired, loss_type):
    """TRL sorts each micro-batch; here both sort the same pairs."""
    generator = torch.Generator().manual_seed(0)
    logps = (-10 * torch.rand(50, 4, generator=generator, dtype=torch.float64)).tolist()
    columns = [(cw - cl, rw - rl) if loss_type == "aot" else (cw - rw, cl - rl) for cw, cl, rw, rl in logps]
    margins = [x - y for x, y in zip(*(sorted(column) for column in zip(*columns, strict=True)), strict=True)]
    expected = [-0.95 * log(sigmoid_of(0.3 * x)) - 0.05 * log(sigmoid_of(-0.3 * x)) for x in margins]
    method = DPO(beta=0.3, loss_type=loss_type, label_smoothing=0.05)
    assert values(method, paired([[[logp] for logp in pair] for pair in logps])) == pytest.approx(expected, rel=1e-9)
