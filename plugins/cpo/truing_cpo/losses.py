"""The losses of a pair as functions of differences [P] to values [P], and the rewards that are compared."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

MOST = 80.0
"""The largest exponent: beyond it a reward is constant and has no gradient, for in float32 it would soon be infinite."""


def smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m), with e the label smoothing."""
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def hinge(margins: Tensor) -> Tensor:
    """max(0, 1 - m)."""
    return (1 - margins).relu()


def ipo(margins: Tensor, beta: float) -> Tensor:
    """(m - 1 / (2 beta))^2."""
    return (margins - 1 / (2 * beta)).square()


def alpha_reward(logps: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward (1 - exp(-alpha p)) / alpha of mean log-probabilities p, any shape; p itself for alpha 0.

    The probability's power is exp(-alpha p); its exponent is held at `MOST`.
    """
    return logps if alpha == 0 else -(-alpha * logps).clamp(max=MOST).expm1() / alpha
