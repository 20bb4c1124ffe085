"""The scores that f-divergences give to log-ratios (f-DPO, Wang et al. 2023, arXiv:2309.16240).

Under the penalty D_f the implicit reward of a completion is beta f'(pi(y|x) / pi_ref(y|x)); a score is that f' as a function of
the log-ratio x = log pi(y|x) - log pi_ref(y|x), up to a constant, which cancels between chosen and rejected.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from truing_dpo.loss_types import DivergenceType

MAX_EXPONENT = 80
"""Exponents are held at this; at 11 in float16. Beyond it what they are exponents of is constant and its gradient 0."""


def held(exponents: Tensor, *, squarable: bool = False) -> Tensor:
    """Return exponents no larger than the bound; with `squarable`, than half of it."""
    largest = min(MAX_EXPONENT, int(math.log(torch.finfo(exponents.dtype).max)))
    return exponents.clamp(max=largest // 2 if squarable else largest)


class Divergence(Protocol):
    """Maps log-ratios, of any shape, to scores; with `squarable`, to scores whose square is finite too."""

    def __call__(self, log_ratios: Tensor, *, squarable: bool = False) -> Tensor:
        """Return the scores."""


def alpha_divergence(log_ratios: Tensor, *, squarable: bool = False, alpha: float) -> Tensor:
    """Return (exp((alpha - 1) x) - 1) / (alpha - 1); its limit at alpha = 1 is x."""
    if alpha == 1:
        return log_ratios
    return held((alpha - 1) * log_ratios, squarable=squarable).expm1() / (alpha - 1)


def js_divergence(log_ratios: Tensor, *, squarable: bool = False) -> Tensor:
    """Return log 2 + log sigmoid(x), the score of the Jensen-Shannon divergence."""
    return math.log(2) + F.logsigmoid(log_ratios)


reverse_kl = partial(alpha_divergence, alpha=1.0)
"""x: the penalty of DPO."""
forward_kl = partial(alpha_divergence, alpha=0.0)
"""1 - exp(-x)."""


def divergence(kind: DivergenceType, alpha: float) -> Divergence:
    """Return the score function of a divergence; `alpha` is that of alpha_divergence."""
    scores: dict[DivergenceType, Divergence] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "js_divergence": js_divergence,
        "alpha_divergence": partial(alpha_divergence, alpha=alpha),
    }
    return scores[kind]
