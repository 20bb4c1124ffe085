"""Importance ratios: of the policy over its start of the update, and of that over the sampler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from truing import LossInputs

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO

MAX_EXPONENT = 20.0
"""Exponents are held at this: a ratio beyond 5e8 is as good as that one, and finite. Its gradient is 0."""


def held_exp(exponents: Tensor) -> Tensor:
    """Return exp of exponents held at the bound."""
    return exponents.clamp(max=MAX_EXPONENT).exp()


@attrs.frozen(eq=False, kw_only=True)
class Samples:
    """What a loss reads of T tokens: in formulas w, A and pi."""

    inputs: LossInputs
    log_ratios: Tensor
    """[T] log of the policy's probability over its own at the start of the update."""
    ratios: Tensor
    """[T] w = exp of that, or of its mean over the completion."""
    advantages: Tensor
    """[T] A."""
    correction: Tensor | None
    """[T] probability at the start of the update over the sampler's, bounded, without gradient; None for no correction."""

    @classmethod
    def of(cls, inputs: LossInputs, method: GRPO) -> Samples:
        """Read a ROLLOUT batch that has advantages."""
        assert inputs.advantages is not None
        log_ratios = inputs.log_ratios
        means = inputs.expand(inputs.mean(log_ratios)) if method.level == "sequence" else log_ratios
        return cls(
            inputs=inputs,
            log_ratios=log_ratios,
            ratios=held_exp(means),
            advantages=inputs.expand(inputs.advantages).to(log_ratios.dtype),
            correction=None if method.importance_sampling_correction == "none" else sampler_correction(inputs, method),
        )


def sampler_difference(inputs: LossInputs, token_logps: Tensor | None) -> Tensor:
    """Return the log of these probabilities, the policy's own for None, over the sampler's, [T] without gradient.

    It is 0 where the sampler gave no number (NaN).
    """
    assert inputs.behavior_token_logps is not None
    difference = (inputs.token_logps if token_logps is None else token_logps).detach() - inputs.behavior_token_logps
    return difference.masked_fill(difference.isnan(), 0.0)


def sampler_correction(inputs: LossInputs, method: GRPO) -> Tensor:
    """Return exp of the sampler difference of each token, or of its sum over the completion, [T], within bounds.

    Truncated importance sampling cuts a ratio to the bounds, masked importance sampling makes 0 of one that is outside (Liu et al.
    2025, "When Speed Kills Stability"; Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
    """
    level, _, how = method.importance_sampling_correction.partition("_")
    difference = sampler_difference(inputs, inputs.proximal_token_logps)
    ratios = held_exp(inputs.expand(inputs.sum(difference)) if level == "sequence" else difference)
    low, high = method.importance_sampling_clip_min, method.importance_sampling_clip_max
    if how == "truncate":
        return ratios.clamp(low, high)
    return ratios.where((ratios >= (-math.inf if low is None else low)) & (ratios <= high), 0.0)


def on_policy(samples: Samples, threshold: float) -> Tensor:
    """Return which tokens stay in the loss, [T] bool, all of a completion or none.

    Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556), equation 9: a completion with a negative advantage is left out
    where the mean of log(sampler's probability / policy's) over its tokens is above the threshold.
    """
    inputs = samples.inputs
    divergences = inputs.mean(-sampler_difference(inputs, None))  # [B]
    return (samples.advantages >= 0) | (inputs.expand(divergences) <= threshold)


def log_of_correction(correction: Tensor) -> Tensor:
    """Return the logarithm of a correction, [T], between log 1e-8 and 20."""
    return correction.log().clamp(math.log(1e-8), MAX_EXPONENT)


def bounded_log(log_ratios: Tensor) -> Tensor:
    """Return log-ratios held at 20 on both sides, [T], without gradient."""
    return torch.clamp(log_ratios.detach(), -MAX_EXPONENT, MAX_EXPONENT)
