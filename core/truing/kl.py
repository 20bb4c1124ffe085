"""The KL divergence of the policy from its reference, estimated from sampled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from truing.off_policy import MAX_EXPONENT

if TYPE_CHECKING:
    from torch import Tensor

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]
"""By the names of Schulman's note."""


def kl_estimate(estimator: KLEstimator, log_ratios: Tensor) -> Tensor:
    """Return k1 = x, k2 = x^2 / 2 or k3 = exp(-x) - 1 + x of x = log policy - log reference, of the shape of x.

    Schulman's note "Approximating KL Divergence" (2020). expm1 keeps the digits of k3 near x = 0, where the plain form may be
    negative.
    """
    if estimator == "k1":
        return log_ratios
    if estimator == "k2":
        return log_ratios.square() / 2
    return (-log_ratios).clamp(max=MAX_EXPONENT).expm1() + log_ratios
