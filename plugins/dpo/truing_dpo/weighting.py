"""Weights of pairs by how likely the policy would write them itself (WPO, Zhou et al. 2024, arXiv:2406.11827)."""

from __future__ import annotations

from torch import Tensor

from truing import LossInputs


def pair_weights(inputs: LossInputs) -> Tensor:
    """Return w(y_w) w(y_l), [P], without gradient: w(y) = exp(mean over tokens of log p_t - log sum_v p_v^2).

    Equation 2 of the paper: 1 for a completion whose tokens have the probability that a sampled token has on average. Needs
    SQUARED_PROBS.
    """
    assert inputs.token_squared_probs is not None
    log_weights = inputs.mean((inputs.token_logps - inputs.token_squared_probs.log()).detach())  # [B]
    return (inputs.chosen.branches(log_weights) + inputs.rejected.branches(log_weights)).exp()
