"""log(1 - exp(x)) and log-odds against 400 digits."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import log

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from truing_orpo.odds import log1mexp, log_odds

EPS = torch.finfo(torch.float64).eps
LOGPS = st.floats(-700, -1e-12) | st.floats(-12, 2.84).map(lambda exponent: -(10**exponent))
"""Even by size, and even by order of magnitude."""


def exact(x: float) -> tuple[float, float, float]:
    """log(1 - exp(x)), its derivative -exp(x) / (1 - exp(x)), and the log-odds x - log(1 - exp(x))."""
    with localcontext(prec=400):
        p = Decimal(x).exp()
        value = (1 - p).ln()
        return float(value), float(-p / (1 - p)), float(Decimal(x) - value)


@settings(max_examples=200, deadline=None)
@given(LOGPS)
@example(-700.0)
@example(-1e-12)
@example(-log(2))
@example(-log(2) - 1e-16)
@example(-log(2) + 1e-16)
def test_values_and_gradients_are_right_to_1e_9(x):
    logps = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    value, derivative, odds = exact(x)
    found = log1mexp(logps)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    assert found.item() == pytest.approx(value, rel=1e-9, abs=0)
    assert gradient.item() == pytest.approx(derivative, rel=1e-9, abs=0)
    found = log_odds(logps)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    # where the odds are 1 their logarithm passes through 0, and only the distance from it says anything
    assert found.item() == pytest.approx(odds, rel=1e-9, abs=1e-15)
    assert gradient.item() == pytest.approx(1 - derivative, rel=1e-9, abs=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-700, -1e-12), min_size=2, max_size=6))
def test_neighbours_do_not_disturb_each_other(xs):
    together = torch.tensor(xs, dtype=torch.float64)
    assert log1mexp(together).tolist() == [log1mexp(torch.tensor([x], dtype=torch.float64)).item() for x in xs]


@pytest.mark.parametrize("x", [0.0, -EPS / 4, -1e-300])
def test_certainty_is_taken_for_the_smallest_doubt_and_has_no_gradient(x):
    logps = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    found = log_odds(logps)
    assert found.item() == pytest.approx(-log(EPS), rel=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    assert gradient.item() == 0.0


def test_impossible_has_odds_of_its_probability():
    logps = torch.tensor([-float("inf"), -1e5], dtype=torch.float64, requires_grad=True)
    assert log_odds(logps).tolist() == [-float("inf"), -1e5]
    (gradient,) = torch.autograd.grad(log_odds(logps)[1], logps)
    assert gradient.tolist() == [0.0, 1.0]
