"""How the costs of tokens become a loss, by loss type: each maps [T] costs to the Term that core sums and divides.

Core divides by what the whole optimiser step has, over all micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from truing import LossInputs, Term
from truing_grpo.loss_types import LossType


def over_tokens(inputs: LossInputs, costs: Tensor) -> Term:
    """Mean over all tokens of the step: every token weighs the same (DAPO, Yu et al. 2025, arXiv:2503.14476)."""
    return Term(costs, per="token")


def over_sequence_means(inputs: LossInputs, costs: Tensor) -> Term:
    """Mean over completions of the mean over their tokens: every completion weighs the same (GRPO, arXiv:2402.03300)."""
    return Term(inputs.mean(costs), per="sequence")


def over_sequence_sums(inputs: LossInputs, costs: Tensor) -> Term:
    """Mean over completions of the sum over their tokens (LUSPO, arXiv:2602.05261)."""
    return Term(inputs.sum(costs), per="sequence")


def over_longest(inputs: LossInputs, costs: Tensor) -> Term:
    """Sum over tokens / (completions * the most tokens that one may have): a constant (Dr. GRPO, arXiv:2503.20783)."""
    assert inputs.max_completion_length is not None
    return Term(inputs.sum(costs), per="sequence", weight=1 / inputs.max_completion_length)


NORMALISERS: Mapping[LossType, Callable[[LossInputs, Tensor], Term]] = {
    "dapo": over_tokens,
    "bnpo": over_tokens,
    "cispo": over_tokens,
    "vespo": over_tokens,
    "grpo": over_sequence_means,
    "gspo": over_sequence_means,
    "sapo": over_sequence_means,
    "luspo": over_sequence_sums,
    "dr_grpo": over_longest,
}
"""Every loss type by name."""
