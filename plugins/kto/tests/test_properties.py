"""What holds for all inputs: initialisation, order, monotony, weights, extremes; and the formulas written out once more."""

from __future__ import annotations

from math import exp, isfinite

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing_kto import KTO

ratio = st.floats(-30, 30)
samples = st.lists(st.tuples(ratio, st.booleans(), ratio), min_size=1, max_size=8)
loss_types = st.sampled_from(["kto", "apo_zero_unpaired"])


def batch(ratios, drawn):
    return ratios([(own, label) for own, label, _ in drawn], [other for *_, other in drawn])


def losses(method, inputs):
    return method(inputs).terms[0].values.tolist()


def sigmoid(x):
    return 1 / (1 + exp(-x)) if x > 0 else exp(x) / (1 + exp(x))


@settings(deadline=None)
@given(samples, loss_types, st.floats(0.01, 2), st.floats(0, 3), st.floats(0.1, 3))
def test_the_formulas_as_plain_arithmetic(ratios, drawn, loss_type, beta, desirable, undesirable):
    """Those of TRL 1.16.0, one sample at a time."""
    method = KTO(beta=beta, loss_type=loss_type, desirable_weight=desirable, undesirable_weight=undesirable)
    z = max(0.0, sum(other for *_, other in drawn) / len(drawn))
    expected = []
    for own, label, _ in drawn:
        if loss_type == "kto":
            value = 1 - sigmoid(beta * (own - z)) if label else 1 - sigmoid(beta * (z - own))
        else:
            value = 1 - sigmoid(beta * own) if label else sigmoid(beta * own)
        expected.append((desirable if label else undesirable) * value)
    assert losses(method, batch(ratios, drawn)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(samples, loss_types)
def test_at_the_reference_every_sample_costs_one_half(ratios, drawn, loss_type):
    inputs = batch(ratios, [(0.0, label, 0.0) for _, label, _ in drawn])
    assert losses(KTO(loss_type=loss_type), inputs) == [0.5] * len(drawn)


@settings(deadline=None)
@given(samples, loss_types, st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(ratios, reduced, drawn, loss_type, draw):
    method, shuffled = KTO(loss_type=loss_type), draw.sample(drawn, len(drawn))
    results = []
    for order in (drawn, shuffled):
        inputs = batch(ratios, order)
        loss, metrics = reduced(method(inputs), inputs)
        results.append({"value": loss.item(), **{name: value.item() for name, value in metrics.items()}})
    assert results[0] == pytest.approx(results[1], rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(samples, loss_types, st.floats(0.01, 5))
def test_a_better_ratio_costs_less_on_its_own_side(ratios, drawn, loss_type, more):
    """The loss falls with a and rises with b, and stays within 0 and 1."""
    method = KTO(loss_type=loss_type)
    before = losses(method, batch(ratios, drawn))
    after = losses(method, batch(ratios, [(own + (more if label else -more), label, other) for own, label, other in drawn]))
    assert all(0 <= new < old <= 1 for old, new in zip(before, after, strict=True))


@settings(deadline=None)
@given(samples, loss_types, st.floats(0, 3), st.floats(0.1, 3))
def test_weights_multiply(ratios, drawn, loss_type, desirable, undesirable):
    inputs = batch(ratios, drawn)
    plain = losses(KTO(loss_type=loss_type), inputs)
    weighted = losses(KTO(loss_type=loss_type, desirable_weight=desirable, undesirable_weight=undesirable), inputs)
    factors = [desirable if label else undesirable for _, label, _ in drawn]
    assert weighted == pytest.approx([factor * value for factor, value in zip(factors, plain, strict=True)])


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("size", [-1e6, -1e3, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(ratios, reduced, loss_type, size, dtype):
    made = ratios([(size, True), (size, False)], [size, -size / 2])
    inputs = attrs.evolve(made, token_logps=made.token_logps.detach().to(dtype).requires_grad_())
    loss, _ = reduced(KTO(loss_type=loss_type)(inputs), inputs)
    loss.backward()
    assert isfinite(loss.item()) and inputs.token_logps.grad.isfinite().all()
