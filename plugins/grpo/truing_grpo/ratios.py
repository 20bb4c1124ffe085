"""Importance ratios: of the policy over its start of the update, with the correction for the sampler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from truing import LossInputs
from truing.off_policy import MAX_EXPONENT, held_exp, sampler_difference

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO


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
            correction=method.correction(inputs),
        )


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
