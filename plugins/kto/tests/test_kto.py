"""Losses, metrics and settings on numbers derived by hand.

beta = 1/2. Sample 1 is desirable and has two tokens; its log-ratio is a = 1.5 ln 3 + 0.5 ln 3 = 2 ln 3. Sample 2 is not desirable
and has one token, b = -2 ln 2. The mismatched completions have log-ratios 3 ln 3 and ln 3, so that z = 2 ln 3.
"""

from __future__ import annotations

from math import log

import attrs
import pytest

from truing import Layout, Needs
from truing.settings import describe_bounds
from truing.testing import check_loss
from truing_kto import KTO

LN2, LN3 = log(2), log(3)
DESIRABLE = ([-1.0, -1.5], [-1.0 - 1.5 * LN3, -1.5 - 0.5 * LN3], True)
UNDESIRABLE = ([-3.0], [-3.0 + 2 * LN2], False)
SAMPLES, MISMATCHED = [DESIRABLE, UNDESIRABLE], [3 * LN3, LN3]


def values(method, inputs):
    (term,) = method(inputs).terms
    assert term.per == "sequence" and term.weight == 1.0
    return term.values.tolist()


def test_kto(labelled):
    """a - z = 0: 1 - 1/2. z - b = 2 ln 3 + 2 ln 2 = 2 ln 6: 1 - sigmoid(ln 6) = 1 - 6/7 = 1/7."""
    assert values(KTO(beta=0.5), labelled(SAMPLES, MISMATCHED)) == pytest.approx([1 / 2, 1 / 7], rel=1e-12)


def test_the_estimate_of_the_divergence_is_not_below_zero(labelled):
    """Mismatched log-ratios -3 and 1 have the mean -1, so z = 0: 1 - sigmoid(ln 3) = 1/4, 1 - sigmoid(ln 2) = 1/3."""
    assert values(KTO(beta=0.5), labelled(SAMPLES, [-3.0, 1.0])) == pytest.approx([1 / 4, 1 / 3], rel=1e-12)


def test_apo_zero_unpaired(labelled):
    """1 - sigmoid(ln 3) = 1/4; sigmoid(-ln 2) = 1/3; whatever the mismatched completions are."""
    assert values(KTO(beta=0.5, loss_type="apo_zero_unpaired"), labelled(SAMPLES, MISMATCHED)) == pytest.approx([1 / 4, 1 / 3])


def test_weights(labelled, reduced):
    """2 x 1/2 and 0.7 x 1/7; the loss is their mean, (1 + 0.1) / 2, and not divided by the weights."""
    inputs = labelled(SAMPLES, MISMATCHED)
    method = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=0.7)
    assert values(method, inputs) == pytest.approx([1.0, 0.1])
    assert reduced(method(inputs), inputs)[0].item() == pytest.approx(0.55)


def test_no_gradient_flows_through_the_estimate(labelled, reduced):
    """The loss is (l1 + l2) / 2. dl1/da = -beta/4 = -1/8 at a - z = 0; dl2/db = beta 1/7 6/7 = 3/49. Tokens share it."""
    inputs = labelled(SAMPLES, MISMATCHED)
    reduced(KTO(beta=0.5)(inputs), inputs)[0].backward()
    assert inputs.token_logps.grad.tolist() == pytest.approx([-1 / 16, -1 / 16, 3 / 98])
    assert inputs.mismatched_token_logps.grad is None


def test_metrics(labelled, reduced):
    """beta = 1/2: rewards ln 3 and -ln 2, so the margin is ln 6; logps -2.5 and -3; a third sample (-1, -1, True) has 0 and -1.

    The third's mismatched log-ratio is 2 ln 3, so z stays. rewards/chosen = ln 3 / 2, the margin ln 3 / 2 + ln 2.
    """
    inputs = labelled([*SAMPLES, ([-1.0], [-1.0], True)], [*MISMATCHED, 2 * LN3])
    output = KTO(beta=0.5)(inputs)
    _, metrics = reduced(output, inputs)
    assert {name: value.item() for name, value in metrics.items() if name != "loss"} == pytest.approx(
        {
            "kl": 2 * LN3,
            "rewards/chosen": LN3 / 2,
            "rewards/rejected": -LN2,
            "rewards/margins": LN3 / 2 + LN2,
            "logps/chosen": -1.75,
            "logps/rejected": -3.0,
        }
    )
    assert [term.values.requires_grad for terms in output.metric_terms.values() for term in terms] == [False] * 7


def test_a_step_of_one_label_has_only_the_metrics_that_there_are(labelled, reduced):
    inputs = labelled([DESIRABLE])
    assert reduced(KTO()(inputs), inputs)[1].keys() == {"loss", "kl", "rewards/chosen", "logps/chosen"}
    inputs = labelled([UNDESIRABLE])
    method = KTO(loss_type="apo_zero_unpaired")
    assert reduced(method(inputs), inputs)[1].keys() == {"loss", "rewards/rejected", "logps/rejected"}


def test_apo_reads_nothing_of_other_prompts_and_no_whole_step():
    assert (KTO.name, KTO.layout) == ("kto", Layout.LABELED)
    assert (KTO().needs, KTO().scope) == (Needs.REFERENCE_LOGPS | Needs.MISMATCHED_LOGPS, "step")
    apo = KTO(loss_type="apo_zero_unpaired")
    assert (apo.needs, apo.scope) == (Needs.REFERENCE_LOGPS, "example")


@pytest.mark.parametrize("method", [KTO(), KTO(loss_type="apo_zero_unpaired"), KTO(desirable_weight=1.5, undesirable_weight=0.2)])
def test_it_keeps_the_promises_of_a_loss(method):
    check_loss(method)


def test_settings_and_bounds():
    bounds = {field.name: (field.default, describe_bounds(field)) for field in attrs.fields(KTO)}
    assert bounds == {
        "beta": (0.1, "> 0"),
        "loss_type": ("kto", ""),
        "desirable_weight": (1.0, ">= 0"),
        "undesirable_weight": (1.0, ">= 0"),
    }
    with pytest.raises(ValueError, match="both 0, so that nothing would be learned"):
        KTO(desirable_weight=0, undesirable_weight=0)
