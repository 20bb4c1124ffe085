"""What a token costs, by loss type: each maps the samples of a batch to [T] costs. truing_grpo.ratios.Samples explains the letters.

The gradient of a cost is a policy gradient -A log pi, weighed by how far the policy has moved since the samples were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from truing.off_policy import MAX_EXPONENT
from truing_grpo.loss_types import CLIPPED, LossType
from truing_grpo.ratios import Samples, bounded_log, log_of_correction

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO


def clipped(samples: Samples, method: GRPO) -> Tensor:
    """-min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A).

    PPO's surrogate (Schulman et al. 2017, arXiv:1707.06347), with DAPO's higher upper bound (arXiv:2503.14476). `delta` bounds w in
    the first product too, which the minimum leaves without a bound where A < 0 (INTELLECT-2, arXiv:2505.07291).
    """
    ratios = samples.ratios
    bounded = ratios.clamp(1 - method.epsilon, 1 + method.high)
    if method.delta is not None:
        ratios = ratios.clamp(max=method.delta)
    return -torch.minimum(ratios * samples.advantages, bounded * samples.advantages)


def cispo(samples: Samples, method: GRPO) -> Tensor:
    """-min(w, epsilon_high) A log pi; no gradient flows through the weight.

    CISPO (MiniMax-M1, arXiv:2506.13585): tokens far from the policy keep a gradient, bounded instead of cut off.
    """
    return -samples.ratios.detach().clamp(max=method.high) * samples.advantages * samples.inputs.token_logps


def sapo(samples: Samples, method: GRPO) -> Tensor:
    """-A 4 sigmoid(t (w - 1)) / t, where t is the temperature of the sign of A.

    SAPO (Gao et al. 2025, arXiv:2511.20347): its slope is 1 at w = 1 and falls smoothly to 0 on both sides.
    """
    positive = samples.advantages > 0
    temperatures = torch.full_like(samples.ratios, method.sapo_temperature_neg).masked_fill(positive, method.sapo_temperature_pos)
    return -samples.advantages * (temperatures * (samples.ratios - 1)).sigmoid() * 4 / temperatures


def vespo(samples: Samples, method: GRPO) -> Tensor:
    """-phi A log pi; no gradient flows through phi."""
    return -samples.inputs.expand(vespo_weights(samples, method)) * samples.advantages * samples.inputs.token_logps


def vespo_weights(samples: Samples, method: GRPO) -> Tensor:
    """Return phi of each completion, [B], without gradient: phi(W) = W^k exp(lambda (1 - W)).

    VESPO (arXiv:2602.10693): W is the product of a completion's ratios, and of its corrections where there are some, between 1e-8
    and e^20; k and lambda are those of the sign of A. phi(1) is 1, and both ends go to 0.
    """
    inputs = samples.inputs
    log_weights = inputs.sum(bounded_log(samples.log_ratios))
    if samples.correction is not None:
        log_weights = log_weights + inputs.sum(log_of_correction(samples.correction))
    log_weights = log_weights.clamp(math.log(1e-8), MAX_EXPONENT)
    assert inputs.advantages is not None
    negative = inputs.advantages < 0
    k = torch.full_like(log_weights, method.vespo_k_pos).masked_fill(negative, method.vespo_k_neg)
    steepness = torch.full_like(log_weights, method.vespo_lambda_pos).masked_fill(negative, method.vespo_lambda_neg)
    return (steepness + k * log_weights - steepness * log_weights.exp()).exp()


SURROGATES: Mapping[LossType, Callable[[Samples, GRPO], Tensor]] = {
    **dict.fromkeys(CLIPPED, clipped),
    "cispo": cispo,
    "sapo": sapo,
    "vespo": vespo,
}
"""Every loss type by name."""
