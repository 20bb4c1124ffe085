"""What holds for all inputs: TRL's formulas, symmetry, independence of split, gradients, extremes."""

from __future__ import annotations

from math import exp, isfinite, log

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.testing import check_cut, check_loss
from truing_cpo import CPO, SimPO
from truing_cpo.losses import MOST, alpha_reward

METHODS = [
    CPO(),
    CPO(label_smoothing=0.2, cpo_alpha=0.0),
    CPO(loss_type="hinge", beta=0.5),
    CPO(loss_type="ipo"),
    SimPO(),
    SimPO(label_smoothing=0.1, cpo_alpha=0.0),
    SimPO(alpha=0.25),
    SimPO(alpha=-2.0),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)
few_examples = settings(max_examples=30, deadline=None)
tokens = st.lists(st.floats(-6, -0.01), min_size=1, max_size=5)
batches = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5)


def trl(loss_type: str, chosen: list[float], rejected: list[float], **settings: float) -> float:
    """The loss of a pair as TRL 1.16.0 computes it, in plain arithmetic."""
    beta, smoothing, gamma, alpha = (settings.get(key, 0.0) for key in ("beta", "label_smoothing", "simpo_gamma", "alpha"))
    w, r = sum(chosen), sum(rejected)
    if loss_type in ("ipo", "simpo"):
        w, r = w / len(chosen), r / len(rejected)
    if alpha:
        w, r = ((1 - exp(p) ** -alpha) / alpha for p in (w, r))
    x = w - r - (gamma / beta if loss_type == "simpo" else 0)
    if loss_type == "hinge":
        return max(0.0, 1 - beta * x)
    if loss_type == "ipo":
        return (x - 1 / (2 * beta)) ** 2
    return -log(1 / (1 + exp(-beta * x))) * (1 - smoothing) - log(1 / (1 + exp(beta * x))) * smoothing


@every_method
@few_examples
@given(batch=batches)
def test_agrees_with_the_formulas_of_trl(paired, reduced, method, batch):
    inputs = paired(batch)
    loss, _ = reduced(method(inputs), inputs)
    kind = "simpo" if isinstance(method, SimPO) else method.loss_type
    own = {key: value for key, value in attrs.asdict(method).items() if isinstance(value, float)}
    pairs = sum(trl(kind, *pair, **own) for pair in batch) / len(batch)
    chosen = [x for pair in batch for x in pair[0]]
    assert loss.item() == pytest.approx(pairs - method.cpo_alpha * sum(chosen) / len(chosen), rel=1e-9, abs=1e-12)


@every_method
@few_examples
@given(batch=batches)
def test_exchanging_chosen_and_rejected_flips_the_margins(paired, method, batch):
    there = method(paired(batch)).metrics
    back = method(paired([(rejected, chosen) for chosen, rejected in batch])).metrics
    assert back["rewards/margins"].values.tolist() == (-there["rewards/margins"].values).tolist()


@every_method
@few_examples
@given(batch=batches, data=st.data())
def test_sum_over_micro_batches_is_the_batch(paired, method, batch, data):
    """Loss, metrics and gradients, with the counts of the whole step."""
    cut = data.draw(st.integers(0, len(batch)))
    check_cut(method, paired(batch), [paired(part) for part in (batch[:cut], batch[cut:]) if part])


@every_method
def test_promises_to_core(method):
    check_loss(method)


@every_method
def test_metrics_carry_no_gradient(paired, method):
    output = method(paired([([-1.0], [-2.0])]))
    assert [name for name, term in output.metrics.items() if term.values.requires_grad] == []


@few_examples
@given(logps=st.lists(st.floats(-6, -0.01), min_size=1, max_size=5))
def test_a_small_alpha_is_nearly_none(logps):
    there = torch.tensor(logps, dtype=torch.float64)
    assert alpha_reward(there, 1e-9).tolist() == pytest.approx(logps, rel=1e-7)
    assert alpha_reward(there, 0.0) is there


def test_exponents_are_held():
    """alpha = 1 and p = -81 and -1000: 1 - e^80, and no gradient."""
    logps = torch.tensor([-81.0, -1000.0], dtype=torch.float64, requires_grad=True)
    rewards = alpha_reward(logps, 1.0)
    assert rewards.tolist() == pytest.approx([1 - exp(MOST)] * 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(rewards.sum(), logps)
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_method
def test_extremes_are_finite(paired, reduced, method, dtype, size):
    inputs = paired([([-size], [-1.0]), ([-1.0], [-size]), ([-size], [-size])], dtype)
    loss, metrics = reduced(method(inputs), inputs)
    loss.backward()
    assert all(isfinite(value.item()) for value in metrics.values())
    assert inputs.token_logps.grad.isfinite().all()
