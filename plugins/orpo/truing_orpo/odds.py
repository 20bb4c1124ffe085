"""Log-odds of log-probabilities, exact from certainty to impossibility."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) = x - log(1 - exp(x)), of x = log p; any shape.

    The nearest to 0 that x is taken for is -eps of its type: what lies nearer is certainty, and has no gradient, where the formula
    has an infinite one. A model's log-probabilities are no finer than that.
    """
    below_zero = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return below_zero - log1mexp(below_zero)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0; any shape.

    log(-expm1(x)) near 0, where 1 - exp(x) would cancel, and log1p(-exp(x)) below -log 2, where its result is near 0.
    """
    near_zero = x > -math.log(2)
    # each branch is given a number at which its gradient is finite where the other one is taken
    near, far = x.where(near_zero, -1.0), x.where(~near_zero, -1.0)
    return (-near.expm1()).log().where(near_zero, (-far.exp()).log1p())
