"""The losses that compare chosen with rejected: each maps P pairs to P values. truing_dpo.pairs.Pairs explains the letters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn.functional import logsigmoid

from truing_dpo.divergences import held
from truing_dpo.loss_types import LossType
from truing_dpo.pairs import Pairs


def sigmoid(pairs: Pairs) -> Tensor:
    """-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d).

    DPO (Rafailov et al. 2023, arXiv:2305.18290); with e > 0 the conservative DPO of Mitchell's note on noisy preferences (2023).
    """
    return _smoothed(pairs.beta * pairs.margins, pairs.label_smoothing)


def sigmoid_norm(pairs: Pairs) -> Tensor:
    """`sigmoid` of beta (A / n_w - B / n_l).

    Length-normalised DPO (Lambert et al. 2024, arXiv:2411.15124).
    """
    return _smoothed(pairs.beta * pairs.mean_margins(), pairs.label_smoothing)


def hinge(pairs: Pairs) -> Tensor:
    """max(0, 1 - beta d).

    SLiC-HF (Zhao et al. 2023, arXiv:2305.10425) on log-ratios, as in RSO (Liu et al. 2023, arXiv:2309.06657).
    """
    return (1 - pairs.beta * pairs.margins).relu()


def ipo(pairs: Pairs) -> Tensor:
    """(A / n_w - B / n_l - 1 / (2 beta))^2.

    IPO (Azar et al. 2023, arXiv:2310.12036) with log-ratios averaged over tokens, where the paper's text has sums: it is the
    form in use, and the one that usual values of beta refer to.
    """
    return (pairs.mean_margins(squarable=True) - 1 / (2 * pairs.beta)).square()


def exo_pair(pairs: Pairs) -> Tensor:
    """sigmoid(beta d) [log sigmoid(beta d) - log(1 - e)] + sigmoid(-beta d) [log sigmoid(-beta d) - log e].

    EXO for pairs (Ji et al. 2024, arXiv:2402.00856), equation 16: the reverse KL divergence from the smoothed labels, e > 0.
    """
    margins = pairs.beta * pairs.margins
    chosen = margins.sigmoid() * (logsigmoid(margins) - math.log(1 - pairs.label_smoothing))
    return chosen + (-margins).sigmoid() * (logsigmoid(-margins) - math.log(pairs.label_smoothing))


def nca_pair(pairs: Pairs) -> Tensor:
    """-log sigmoid(beta a) - 1/2 log sigmoid(-beta a) - 1/2 log sigmoid(-beta b).

    NCA for pairs (Chen et al. 2024, arXiv:2402.05369).
    """
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def robust(pairs: Pairs) -> Tensor:
    """[-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)] / (1 - 2 e).

    Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): unbiased when a share e < 1/2 of the labels is flipped.
    """
    margins, flipped = pairs.beta * pairs.margins, pairs.label_smoothing
    return (-(1 - flipped) * logsigmoid(margins) + flipped * logsigmoid(-margins)) / (1 - 2 * flipped)


def bco_pair(pairs: Pairs) -> Tensor:
    """-log sigmoid(beta a) - log sigmoid(-beta b).

    BCO for pairs (Jung et al. 2024, arXiv:2404.04656), without its running reward shift.
    """
    return -logsigmoid(pairs.beta * pairs.chosen) - logsigmoid(-pairs.beta * pairs.rejected)


def sppo_hard(pairs: Pairs) -> Tensor:
    """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2.

    SPPO (Wu et al. 2024, arXiv:2405.00675) with hard labels: the win rate of chosen is 1, that of rejected 0.
    """
    target = 1 / (2 * pairs.beta)
    return (pairs.chosen - target).square() + (pairs.rejected + target).square()


def apo_zero(pairs: Pairs) -> Tensor:
    """1 - sigmoid(beta a) + sigmoid(beta b).

    APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): raises chosen and lowers rejected, for chosen better than the model.
    """
    return 1 - (pairs.beta * pairs.chosen).sigmoid() + (pairs.beta * pairs.rejected).sigmoid()


def apo_down(pairs: Pairs) -> Tensor:
    """sigmoid(beta a) + 1 - sigmoid(beta (a - b)).

    APO-down (D'Oosterlinck et al. 2024, arXiv:2408.06266): lowers both, rejected more, for chosen worse than the model.
    """
    return (pairs.beta * pairs.chosen).sigmoid() + 1 - (pairs.beta * (pairs.chosen - pairs.rejected)).sigmoid()


def aot(pairs: Pairs) -> Tensor:
    """`sigmoid` of beta times the i-th smallest log pi(y_w|x) - log pi(y_l|x) less the i-th smallest such difference of pi_ref.

    AOT for pairs (Melnyk et al. 2024, arXiv:2406.05882): the margins as a distribution, those of the whole optimiser step.
    """
    return _smoothed(pairs.beta * (_sorted(pairs.policy_margins) - _sorted(pairs.reference_margins)), pairs.label_smoothing)


def aot_unpaired(pairs: Pairs) -> Tensor:
    """`sigmoid` of beta times the i-th smallest a less the i-th smallest b.

    AOT without pairs (Melnyk et al. 2024, arXiv:2406.05882): which rejected completion a chosen one came with does not matter.
    """
    return _smoothed(pairs.beta * (_sorted(pairs.chosen) - _sorted(pairs.rejected)), pairs.label_smoothing)


def discopop(pairs: Pairs) -> Tensor:
    """-(1 - m) log sigmoid(beta d) + m exp(-beta d) with m = sigmoid(beta d / tau).

    DiscoPOP (Lu et al. 2024, arXiv:2406.08414), equation 5: found by a language model's search over losses. The product with the
    exponential is one exponent, which grows without bound for tau > 1 only, and is held there as those of divergences are.
    """
    margins = pairs.beta * pairs.margins
    scaled = margins / pairs.discopop_tau
    return -logsigmoid(margins) * (-scaled).sigmoid() + held(logsigmoid(scaled) - margins).exp()


def _sorted(values: Tensor) -> Tensor:
    return values.sort().values


def _smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


LOSSES: Mapping[LossType, Callable[[Pairs], Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
}
"""Every loss type but `sft`, by name."""
