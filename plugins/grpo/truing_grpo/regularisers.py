"""What is added to the policy's costs, the KL divergence from the reference, and which tokens entropy leaves in the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from truing import LossInputs
from truing.kl import kl_estimate
from truing_grpo.ratios import Samples

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO


def kl(samples: Samples, method: GRPO) -> Tensor:
    """Return the estimate of KL(policy || reference) of each token, [T].

    With use_bias_correction_kl it is times w (DeepSeek-V3.2, arXiv:2512.02556): its mean over the samples, and the
    gradient of that, are then those of the policy that is trained, and not of the one that sampled.
    """
    inputs = samples.inputs
    assert inputs.reference_token_logps is not None
    estimates = kl_estimate(method.kl_estimator, inputs.token_logps - inputs.reference_token_logps)
    return estimates * samples.ratios if method.use_bias_correction_kl else estimates


def high_entropy(inputs: LossInputs, share: float) -> Tensor:
    """Return which tokens have the greatest entropy, [T] bool: floor(share (T - 1)) + 1 of them, and ties with the last.

    Forking tokens (Wang et al. 2025, arXiv:2506.01939): those not below the 1 - share quantile of the whole step's entropies.
    """
    assert inputs.token_entropy is not None
    entropy, counted = inputs.token_entropy.detach(), inputs.expand(inputs.kept)
    among = entropy[counted]
    if not len(among):
        return counted
    lowest = among.kthvalue(len(among) - math.floor(share * (len(among) - 1))).values
    return counted & (entropy >= lowest)
