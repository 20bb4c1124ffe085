"""What the settings change, the metrics, and the settings that are refused; numbers are derived by hand."""

from __future__ import annotations

from math import log

import pytest

from truing import Layout, Needs
from truing.settings import describe_bounds
from truing_dpo import DPO, IPO

PAIR = ([-1.0, -2.0], [-3.0, -1.0, -2.0, -2.0], [-2.0, -2.5], [-1.0, -1.5, -1.5, -3.0])
"""a = 1 + 0.5 = 1.5 in two tokens; b = -2 + 0.5 - 0.5 + 1 = -1 in four."""
TIE = ([-1.0], [-2.0], [-1.5], [-2.5])
"""a = b = 0.5."""


def test_metrics(paired, reduced):
    """beta = 0.2: rewards 0.3 and -0.2, 0.1 and 0.1; means 0.2, -0.05, margin 0.25; one strict win in two; logps -3, -1; -8, -2."""
    inputs = paired([PAIR, TIE])
    _, metrics = reduced(DPO(beta=0.2)(inputs), inputs)
    assert {name: value.item() for name, value in metrics.items() if name != "loss"} == pytest.approx(
        {
            "rewards/chosen": 0.2,
            "rewards/rejected": -0.05,
            "rewards/accuracies": 0.5,
            "rewards/margins": 0.25,
            "logps/chosen": -2.0,
            "logps/rejected": -5.0,
        }
    )


def test_metrics_carry_no_gradient(paired):
    output = DPO(loss_type=("sigmoid", "sft"), rpo_alpha=0.5)(paired([PAIR]))
    assert [name for name, term in output.metrics.items() if term.values.requires_grad] == []
    assert all(term.values.requires_grad for term in output.terms)


def test_rewards_are_log_ratios_whatever_the_divergence_and_the_lengths(paired, reduced):
    inputs = paired([PAIR])
    for method in (DPO(beta=0.2, f_divergence_type="forward_kl"), DPO(beta=0.2, loss_type="sigmoid_norm"), IPO(beta=0.2)):
        _, metrics = reduced(method(inputs), inputs)
        assert (metrics["rewards/chosen"].item(), metrics["rewards/rejected"].item()) == pytest.approx((0.3, -0.2))


def test_combination(paired, reduced):
    """MPO, beta = ln 3 / 1.5 so that beta a = ln 3: two identical pairs, b = 0.

    sigmoid: -ln 3/4 = ln 4/3; bco_pair: -ln 3/4 - ln 1/2 = ln 8/3; sft: (1 + 2) / 2 = 1.5. 0.8 ln 4/3 + 0.2 ln 8/3 + 1.5.
    """
    inputs = paired([(PAIR[0], [-1.0], PAIR[2], [-1.0])] * 2)
    method = DPO(beta=log(3) / 1.5, loss_type=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0))
    loss, metrics = reduced(method(inputs), inputs)
    assert loss.item() == pytest.approx(0.8 * log(4 / 3) + 0.2 * log(8 / 3) + 1.5)
    parts = {name: value.item() for name, value in metrics.items() if name.startswith("loss/") or name == "nll_loss"}
    expected = {"loss/sigmoid": log(4 / 3), "loss/bco_pair": log(8 / 3), "loss/sft": 1.5, "nll_loss": 1.5}
    assert parts == pytest.approx(expected)


def test_weights_are_one_each_by_default(paired, reduced):
    """sppo_hard and ipo with beta = 0.5: 0.5^2 + 0^2 = 0.25; (0.75 + 0.25 - 1)^2 = 0."""
    inputs = paired([PAIR])
    loss, _ = reduced(DPO(beta=0.5, loss_type=["sppo_hard", "ipo"])(inputs), inputs)
    assert loss.item() == pytest.approx(0.25)


def test_rpo_alpha_adds_the_mean_cost_of_chosen_tokens(paired, reduced):
    """Chosen tokens cost 1, 2 and 1: 4/3 on average; beta d = 0.5 and 0 with beta = 0.2 and `hinge`: (0.5 + 1) / 2 = 0.75."""
    inputs = paired([PAIR, TIE])
    loss, metrics = reduced(DPO(beta=0.2, loss_type="hinge", rpo_alpha=0.3)(inputs), inputs)
    assert loss.item() == pytest.approx(0.75 + 0.3 * 4 / 3)
    assert metrics["nll_loss"].item() == pytest.approx(4 / 3)
    assert "loss/hinge" not in metrics


@pytest.mark.parametrize(("ld_alpha", "b"), [(None, -1.0), (1.0, -1.0), (0.5, -1.25), (0.0, -1.5)])
def test_ld_alpha_weighs_what_lies_beyond_the_shorter_completion(paired, reduced, ld_alpha, b):
    """The first two of four rejected tokens give -2 + 0.5 = -1.5, the last two -0.5 + 1 = 0.5: b = -1.5 + 0.5 ld_alpha.

    Chosen is the shorter one, so a stays 1.5; the log-probabilities that are reported stay sums.
    """
    inputs = paired([PAIR])
    loss, metrics = reduced(DPO(beta=0.2, loss_type="hinge", ld_alpha=ld_alpha)(inputs), inputs)
    assert loss.item() == pytest.approx(1 - 0.2 * (1.5 - b))
    assert metrics["rewards/rejected"].item() == pytest.approx(0.2 * b)
    assert metrics["logps/rejected"].item() == -8.0


def test_ld_alpha_on_a_longer_chosen(paired):
    """Exchanged: a = -1.5 + 0.5 x 0.5 = -1.25, b = 1.5, and the second pair has equal lengths; 1 - 0.2 d = 1.55 and 1."""
    swapped = (PAIR[1], PAIR[0], PAIR[3], PAIR[2])
    (term,) = DPO(beta=0.2, loss_type="hinge", ld_alpha=0.5)(paired([swapped, TIE])).terms
    assert term.values.tolist() == pytest.approx([1.55, 1.0])


def test_reference_is_needed_unless_sft_is_alone(paired):
    assert DPO().needs is IPO().needs is Needs.REFERENCE_LOGPS
    assert DPO(loss_type=("sigmoid", "sft")).needs is Needs.REFERENCE_LOGPS
    for alone in (DPO(loss_type="sft"), DPO(loss_type=["sft"])):
        assert alone.needs is Needs.NOTHING
        assert set(alone(paired([PAIR], reference=False)).metrics) == {"logps/chosen", "logps/rejected", "nll_loss"}


def test_only_losses_that_sort_see_the_whole_step():
    assert DPO().scope == DPO(loss_type="discopop").scope == IPO().scope == "example"
    assert DPO(loss_type="aot").scope == DPO(loss_type=("sigmoid", "aot_unpaired")).scope == "step"


def test_sft_goes_with_any_divergence(paired, reduced):
    """forward_kl of a = b = 0.5 gives d = 0, so `hinge` is 1; the chosen token costs 1."""
    inputs = paired([TIE])
    loss, _ = reduced(DPO(loss_type=("hinge", "sft"), f_divergence_type="forward_kl")(inputs), inputs)
    assert loss.item() == pytest.approx(2.0)


def test_completion_without_counted_tokens(paired):
    """b = 0 over no token is taken as 0 per token: (1.5 / 2 - 0 - 1)^2 = 1/16 with beta = 0.5."""
    (term,) = IPO(beta=0.5)(paired([(PAIR[0], [], PAIR[2], [])])).terms
    assert term.values.tolist() == pytest.approx([1 / 16])


def test_ipo_is_dpo_with_one_loss(paired):
    inputs = paired([PAIR, TIE])
    (ours,), (same,) = IPO(beta=0.3)(inputs).terms, DPO(beta=0.3, loss_type="ipo")(inputs).terms
    assert ours.values.tolist() == same.values.tolist()
    assert IPO.layout is DPO.layout is Layout.PAIRED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": ()}, "loss_type is an empty list; name at least one of sigmoid, hinge, "),
        ({"loss_type": ("sigmoid", "sigmoid")}, "names a loss twice: sigmoid, sigmoid; name it once"),
        ({"loss_weights": (1.0, 2.0)}, r"has 2 numbers, but loss_type names 1 \(sigmoid\); give one for each"),
        ({"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0,)}, r"has 1 numbers, but loss_type names 2 \(sigmoid, sft\)"),
        ({"loss_type": "exo_pair"}, "takes the logarithm of label_smoothing, got 0; set it above 0"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, r"ipo has no label_smoothing, got 0.1: its target 1 / \(2 beta\)"),
        ({"loss_type": ("sigmoid", "ipo"), "label_smoothing": 0.1}, "ipo has no label_smoothing"),
        (
            {"loss_type": ("hinge", "sft"), "label_smoothing": 0.1},
            r"nothing in loss_type \(hinge, sft\) reads it; set it to 0, or use one of",
        ),
        (
            {"loss_type": ("sigmoid", "bco_pair", "sppo_hard"), "f_divergence_type": "js_divergence"},
            "js_divergence does not go with loss_type bco_pair, sppo_hard, .* set it to reverse_kl, or use sigmoid, hinge",
        ),
        (
            {"loss_type": ("aot", "sigmoid", "aot_unpaired"), "use_weighting": True},
            "use_weighting does not go with loss_type aot, aot_unpaired, which sorts .* set it to false",
        ),
        ({"loss_type": "sft", "use_weighting": True}, "weighs pairs, but loss_type sft has none; set it to false, or add"),
        ({"loss_type": "aot", "f_divergence_type": "js_divergence"}, "js_divergence does not go with loss_type aot, whose formula"),
        (
            {"discopop_tau": 0.1},
            r"discopop_tau is 0.1, but loss_type sigmoid does not read it; leave it out, or use discopop",
        ),
        ({"f_alpha_divergence_coef": 0.7}, "is 0.7, but f_divergence_type reverse_kl does not read it; leave it out, or set"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DPO(**settings)


def test_ipo_refuses_label_smoothing_with_the_reason():
    with pytest.raises(ValueError, match="set label_smoothing to 0, and a larger beta where labels are noisy"):
        IPO(label_smoothing=0.1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta", 0.0),
        ("beta", float("nan")),
        ("loss_weights", (-1.0,)),
        ("label_smoothing", 0.5),
        ("label_smoothing", -0.1),
        ("f_alpha_divergence_coef", -0.5),
        ("rpo_alpha", -1.0),
        ("ld_alpha", 1.1),
        ("discopop_tau", 0.0),
    ],
)
def test_values_out_of_bounds_are_refused(key, value):
    bounds = describe_bounds(getattr(DPO.__attrs_attrs__, key))
    with pytest.raises(ValueError, match=f"^{key} must be {bounds}, got"):
        DPO(**{key: value})


def test_defaults_are_the_paper_with_nothing_mixed_in():
    assert DPO() == DPO(
        beta=0.1,
        loss_type="sigmoid",
        loss_weights=(),
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        rpo_alpha=0.0,
        ld_alpha=None,
        discopop_tau=0.05,
        use_weighting=False,
    )
    assert IPO().beta == 0.1
