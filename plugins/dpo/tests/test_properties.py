"""What holds for all inputs: initialisation, symmetry, independence of order and split, gradients, extremes."""

from __future__ import annotations

from math import isfinite, log

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.testing import check_cut, check_loss
from truing_dpo import DPO, IPO
from truing_dpo.loss_types import OF_THE_STEP, WITH_DIVERGENCE, WITH_LABEL_SMOOTHING
from truing_dpo.losses import LOSSES

SMOOTHING = {"exo_pair": 0.1, "robust": 0.1}
METHODS = [DPO(loss_type=kind, label_smoothing=SMOOTHING.get(kind, 0.0)) for kind in (*LOSSES, "sft")]
few_examples = settings(max_examples=30, deadline=None)
DIVERGENCES = ("forward_kl", "js_divergence", "alpha_divergence")

tokens = st.lists(st.floats(-8, -0.01), min_size=1, max_size=5)


@st.composite
def branches(draw):
    policy = draw(tokens)
    return policy, [draw(st.floats(-8, -0.01)) for _ in policy]


@st.composite
def batches(draw, max_size=4):
    drawn = draw(st.lists(st.tuples(branches(), branches()), min_size=1, max_size=max_size))
    return [(chosen[0], rejected[0], chosen[1], rejected[1]) for chosen, rejected in drawn]


def name_of(method):
    return f"{method.loss_type}-{method.f_divergence_type}-{method.label_smoothing:g}"


every_method = pytest.mark.parametrize("method", METHODS, ids=name_of)


@few_examples
@given(batch=batches(), beta=st.floats(0.01, 5))
def test_at_initialisation(paired, batch, beta):
    """Policy and reference agree: every log-ratio is 0, so DPO is ln 2, IPO (0 - 1 / (2 beta))^2."""
    inputs = paired([(chosen, rejected, chosen, rejected) for chosen, rejected, _, _ in batch])
    for kind in ("reverse_kl", *DIVERGENCES):
        (dpo,) = DPO(beta=beta, f_divergence_type=kind)(inputs).terms
        assert dpo.values.tolist() == pytest.approx([log(2)] * len(batch), rel=1e-12)
    (ipo,) = IPO(beta=beta)(inputs).terms
    assert ipo.values.tolist() == pytest.approx([1 / (4 * beta**2)] * len(batch), rel=1e-12)


@few_examples
@given(batch=batches())
def test_exchanging_chosen_and_rejected_flips_the_margins(paired, batch):
    there = DPO()(paired(batch)).metrics
    back = DPO()(paired([(rejected, chosen, other, reference) for chosen, rejected, reference, other in batch])).metrics
    assert back["rewards/margins"].values.tolist() == (-there["rewards/margins"].values).tolist()
    assert back["rewards/chosen"].values.tolist() == there["rewards/rejected"].values.tolist()


@every_method
@few_examples
@given(batch=batches())
def test_permuting_pairs_permutes_values(paired, method, batch):
    there, back = method(paired(batch)), method(paired(batch[::-1]))
    for term, other in zip(there.terms, back.terms, strict=True):
        if method.scope == "step":
            assert term.values.tolist() == other.values.tolist()
        elif term.per == "pair":
            assert term.values.tolist() == other.values.tolist()[::-1]


@every_method
def test_only_counted_completion_tokens_enter(paired, method):
    """Everything that is not in the contract of a pairwise loss, the prompt's log-probabilities first, may be anything."""
    inputs = paired([([-1.0, -2.0], [-3.0], [-2.0, -2.5], [-1.0])] * 2)
    noise = torch.full((7,), float("nan"), dtype=torch.float64)
    disturbed = attrs.evolve(
        inputs,
        prompt_token_logps=noise,
        prompt_tree_ids=torch.zeros(7, dtype=torch.int64),
        tree_ids=inputs.tree_ids + 5,
        token_entropy=noise[:6],
        margins=noise[:4],
    )
    for term, other in zip(method(inputs).terms, method(disturbed).terms, strict=True):
        assert term.values.tolist() == other.values.tolist()


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@few_examples
@given(batch=batches(max_size=6), data=st.data())
def test_sum_over_micro_batches_is_the_batch(paired, ld_alpha, batch, data):
    """Loss, metrics and gradients, with the counts of the whole step, of a combination that has both kinds of term."""
    method = DPO(loss_type=("sigmoid", "ipo", "sft"), loss_weights=(1.0, 0.01, 0.5), rpo_alpha=0.2, ld_alpha=ld_alpha)
    cut = data.draw(st.integers(0, len(batch)))
    check_cut(method, paired(batch), [paired(part) for part in (batch[:cut], batch[cut:]) if part])


@few_examples
@given(batch=batches(), weights=st.tuples(*[st.floats(0, 3)] * len(METHODS)))
def test_combination_is_the_weighted_sum(paired, reduced, batch, weights):
    inputs = paired(batch)
    kinds = {kind: weight for kind, weight in zip((*LOSSES, "sft"), weights, strict=True) if kind not in ("ipo", "exo_pair")}
    together, _ = reduced(DPO(loss_type=tuple(kinds), loss_weights=tuple(kinds.values()))(inputs), inputs)
    apart = sum(weight * reduced(DPO(loss_type=kind)(inputs), inputs)[0] for kind, weight in kinds.items())
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


GRADIENTS = [
    *METHODS,
    *(attrs.evolve(method, label_smoothing=0.2) for method in METHODS if method.loss_type in WITH_LABEL_SMOOTHING),
    *(
        attrs.evolve(method, f_divergence_type=kind)
        for method in METHODS
        if method.loss_type in WITH_DIVERGENCE and method.loss_type != "sft"
        for kind in DIVERGENCES
    ),
    *(DPO(loss_type=kind, ld_alpha=0.4, rpo_alpha=0.5) for kind in ("sigmoid", *OF_THE_STEP)),
    DPO(loss_type="discopop", discopop_tau=3.0),
]


@pytest.mark.parametrize("method", GRADIENTS, ids=name_of)
def test_gradient(paired, method):
    """Against finite differences; log-ratios of order 1 stay clear of hinge's corner."""
    inputs = paired([([-1.0, -2.0], [-3.0, -1.0, -2.2], [-2.0, -2.5], [-1.0, -1.5, -1.5]), ([-2.0], [-0.5], [-1.4], [-1.7])])

    def total(token_logps):
        return sum(term.weight * term.values.sum() for term in method(attrs.evolve(inputs, token_logps=token_logps)).terms)

    assert torch.autograd.gradcheck(total, inputs.token_logps)


@pytest.mark.parametrize("method", [*GRADIENTS, IPO()], ids=lambda method: method.name if method == IPO() else name_of(method))
def test_promises_to_core(method):
    check_loss(method)


@pytest.mark.parametrize("loss_type", [kind for kind in LOSSES if kind not in OF_THE_STEP])
def test_promises_to_core_of_weighted_pairs(loss_type):
    """The weights carry no gradient, so the gradient is not that of the value."""
    check_loss(DPO(loss_type=loss_type, label_smoothing=SMOOTHING.get(loss_type, 0.0), use_weighting=True), gradcheck=False)


@pytest.mark.parametrize("size", [1e2, 2e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", GRADIENTS, ids=name_of)
def test_extremes_are_finite(ratios, reduced, method, dtype, size):
    """Log-ratios of either sign on either side; the exponent of a divergence is held where even IPO's square is finite."""
    inputs = ratios([(size, -size), (-size, size), (size, size), (-size, -size)])
    logps = inputs.token_logps.detach().to(dtype).requires_grad_()
    inputs = attrs.evolve(inputs, token_logps=logps, reference_token_logps=inputs.reference_token_logps.to(dtype))
    loss, metrics = reduced(method(inputs), inputs)
    loss.backward()
    assert all(isfinite(value.item()) for value in metrics.values())
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize("kind", DIVERGENCES)
@few_examples
@given(a=st.floats(-90, 90, width=32), b=st.floats(-90, 90, width=32))
def test_divergences_never_overflow(ratios, kind, a, b):
    """In float32, also where the exponent is just below the bound that holds it."""
    inputs = ratios([(a, b)])
    logps = inputs.token_logps.detach().float().requires_grad_()
    inputs = attrs.evolve(inputs, token_logps=logps, reference_token_logps=inputs.reference_token_logps.float())
    coefficient = {"f_alpha_divergence_coef": 2.0} if kind == "alpha_divergence" else {}
    for loss_type in ("sigmoid", "hinge", "ipo"):
        (term,) = DPO(loss_type=loss_type, f_divergence_type=kind, **coefficient)(inputs).terms
        (gradient,) = torch.autograd.grad(term.values.sum(), logps)
        assert term.values.isfinite().all() and gradient.isfinite().all()


def test_exponents_are_held_at_80(ratios):
    """forward_kl of -81 and of -1000 is 1 - e^80, with `hinge` and beta = 1: 1 + e^80 - 1 = e^80 against b = 0, and no gradient."""
    inputs = ratios([(-81.0, 0.0), (-1000.0, 0.0)])
    (term,) = DPO(beta=1.0, loss_type="hinge", f_divergence_type="forward_kl")(inputs).terms
    assert term.values.tolist() == pytest.approx([torch.tensor(80.0, dtype=torch.float64).exp().item()] * 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(term.values.sum(), inputs.token_logps)
    assert gradient[::2].tolist() == [0.0, 0.0]
