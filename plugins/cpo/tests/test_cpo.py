"""CPO and SimPO on numbers derived by hand.

Chosen has two tokens that sum to -2 ln 2, rejected four that sum to -4 ln 3: the means are -ln 2 and -ln 3. The difference of sums
is 4 ln 3 - 2 ln 2 = 2 ln(9/2), that of means ln(3/2). A second pair is the first with chosen and rejected exchanged.
"""

from __future__ import annotations

from math import exp, log

import pytest

from truing import Layout, Needs
from truing.settings import describe_bounds
from truing_cpo import CPO, SimPO

LN2, LN3 = log(2), log(3)
GOOD = [-LN2 - 0.1, -LN2 + 0.1]
BAD = [-LN3] * 4
PAIRS = [(GOOD, BAD), (BAD, GOOD)]


def values(method, inputs):
    term = method(inputs).terms[0]
    assert (term.per, term.weight) == ("pair", 1.0)
    return term.values.tolist()


def test_sigmoid(paired):
    """beta = 1/2: e^(beta x) = 9/2, so -ln 9/11 and -ln 2/11."""
    assert values(CPO(beta=0.5), paired(PAIRS)) == pytest.approx([log(11 / 9), log(11 / 2)], rel=1e-12)


def test_sigmoid_with_label_smoothing(paired):
    """0.9 ln 11/9 + 0.1 ln 11/2, and the other way round."""
    expected = [0.9 * log(11 / 9) + 0.1 * log(11 / 2), 0.9 * log(11 / 2) + 0.1 * log(11 / 9)]
    assert values(CPO(beta=0.5, label_smoothing=0.1), paired(PAIRS)) == pytest.approx(expected, rel=1e-12)


def test_hinge(paired):
    """beta x = ln(9/2) > 1 costs nothing; 1 + ln(9/2)."""
    assert values(CPO(beta=0.5, loss_type="hinge"), paired(PAIRS)) == pytest.approx([0.0, 1 + log(9 / 2)], rel=1e-12)


def test_ipo_averages_over_tokens(paired):
    """1 / (2 beta) = 1: (ln(3/2) - 1)^2 and (-ln(3/2) - 1)^2."""
    expected = [(log(1.5) - 1) ** 2, (log(1.5) + 1) ** 2]
    assert values(CPO(beta=0.5, loss_type="ipo"), paired(PAIRS)) == pytest.approx(expected, rel=1e-12)


def test_simpo(paired):
    """beta = 2, gamma = ln 2: e^(beta x - gamma) = 9/8, so -ln 9/17; exchanged (4/9) / 2 = 2/9, so -ln 2/11."""
    assert values(SimPO(simpo_gamma=LN2), paired(PAIRS)) == pytest.approx([log(17 / 9), log(11 / 2)], rel=1e-12)


def test_simpo_with_label_smoothing(paired):
    """-ln sigmoid of minus the same: -ln 8/17 and -ln 9/11."""
    expected = [0.8 * log(17 / 9) + 0.2 * log(17 / 8), 0.8 * log(11 / 2) + 0.2 * log(11 / 9)]
    assert values(SimPO(simpo_gamma=LN2, label_smoothing=0.2), paired(PAIRS)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha", "difference"), [(1.0, 1.0), (-1.0, 1 / 6), (2.0, 5 / 2), (-2.0, 5 / 72)])
def test_alphapo(paired, alpha, difference):
    """The probabilities are 1/2 and 1/3: r = (1 - q^-alpha) / alpha.

    alpha 1: -1 and -2; -1: q - 1, so 1/2 - 1/3; 2: (1 - 4) / 2 and (1 - 9) / 2; -2: (q^2 - 1) / 2, so (1/4 - 1/9) / 2.
    """
    method = SimPO(alpha=alpha, simpo_gamma=0.0, beta=3.0)
    expected = [log(1 + exp(-3 * difference)), log(1 + exp(3 * difference))]
    assert values(method, paired(PAIRS)) == pytest.approx(expected, rel=1e-12)
    chosen, rejected = (method(paired(PAIRS[:1])).metrics[f"rewards/{side}"].values.item() for side in ("chosen", "rejected"))
    assert chosen - rejected == pytest.approx(3 * difference)


@pytest.mark.parametrize("method", [CPO(beta=0.5, cpo_alpha=0.3), SimPO(cpo_alpha=0.3)], ids=["cpo", "simpo"])
def test_cpo_alpha_adds_the_mean_cost_of_chosen_tokens(paired, reduced, method):
    """Chosen tokens cost 2 ln 2 in two and 4 ln 3 in four: (2 ln 2 + 4 ln 3) / 6."""
    inputs = paired(PAIRS)
    loss, metrics = reduced(method(inputs), inputs)
    nll = (2 * LN2 + 4 * LN3) / 6
    assert metrics["nll_loss"].item() == pytest.approx(nll, rel=1e-12)
    assert loss.item() == pytest.approx(sum(values(method, inputs)) / 2 + 0.3 * nll, rel=1e-12)


@pytest.mark.parametrize("method", [CPO(cpo_alpha=0), SimPO(cpo_alpha=0)], ids=["cpo", "simpo"])
def test_without_cpo_alpha_there_is_no_likelihood(paired, method):
    output = method(paired(PAIRS))
    assert len(output.terms) == 1 and "nll_loss" not in output.metrics


@pytest.mark.parametrize(
    ("method", "chosen", "rejected", "scale"),
    [
        (CPO(beta=0.5), -2 * LN2, -4 * LN3, 0.5),
        (CPO(beta=0.5, loss_type="hinge"), -2 * LN2, -4 * LN3, 0.5),
        (CPO(beta=0.5, loss_type="ipo"), -LN2, -LN3, 0.5),
        (SimPO(), -LN2, -LN3, 2.0),
    ],
    ids=["sigmoid", "hinge", "ipo", "simpo"],
)
def test_metrics(paired, reduced, method, chosen, rejected, scale):
    """Sums or means as the loss has them, and beta times them; two pairs of four are right, and a tie is not."""
    inputs = paired([PAIRS[0], PAIRS[0], PAIRS[1], (BAD, BAD)])
    _, metrics = reduced(method(inputs), inputs)
    found = {name: value.item() for name, value in metrics.items() if name not in ("loss", "nll_loss")}
    mean = (2 * chosen + 2 * rejected) / 4, (chosen + 3 * rejected) / 4
    assert found == pytest.approx(
        {
            "rewards/chosen": scale * mean[0],
            "rewards/rejected": scale * mean[1],
            "rewards/accuracies": 0.5,
            "rewards/margins": scale * (mean[0] - mean[1]),
            "logps/chosen": mean[0],
            "logps/rejected": mean[1],
        }
    )


def test_logps_are_as_they_are_where_rewards_are_bent(paired):
    metrics = SimPO(alpha=1.0)(paired(PAIRS[:1])).metrics
    assert metrics["logps/chosen"].values.item() == pytest.approx(-LN2)
    assert metrics["rewards/chosen"].values.item() == pytest.approx(-2.0)


def test_nothing_but_the_policy_is_read():
    for method in (CPO(), CPO(loss_type="ipo"), SimPO(), SimPO(alpha=0.5)):
        assert method.needs is Needs.NOTHING and method.layout is Layout.PAIRED


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
def test_label_smoothing_that_nothing_reads_is_refused(loss_type):
    says = f"label_smoothing is 0.1, but loss_type {loss_type} does not read it; set it to 0, or use loss_type sigmoid"
    with pytest.raises(ValueError, match=says):
        CPO(loss_type=loss_type, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (CPO, "beta", 0.0),
        (CPO, "label_smoothing", 0.5),
        (CPO, "cpo_alpha", -1.0),
        (SimPO, "beta", 0.0),
        (SimPO, "simpo_gamma", -1.0),
        (SimPO, "label_smoothing", -0.1),
        (SimPO, "cpo_alpha", -1.0),
    ],
)
def test_values_out_of_bounds_are_refused(cls, key, value):
    bounds = describe_bounds(getattr(cls.__attrs_attrs__, key))
    with pytest.raises(ValueError, match=f"^{key} must be {bounds}, got"):
        cls(**{key: value})


def test_defaults():
    assert CPO() == CPO(beta=0.1, loss_type="sigmoid", label_smoothing=0.0, cpo_alpha=1.0)
    assert SimPO() == SimPO(beta=2.0, simpo_gamma=1.0, label_smoothing=0.0, cpo_alpha=1.0, alpha=0.0)
