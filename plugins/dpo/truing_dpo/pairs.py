"""What the losses read of a batch: P pairs as tensors of shape [P]."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from truing import LossInputs, Term
from truing_dpo.divergences import Divergence, reverse_kl


@attrs.frozen(eq=False, kw_only=True)
class Pairs:
    """The log-ratios of P pairs, their lengths, and the settings that formulas share.

    In formulas: a and b are the log-ratios of chosen and rejected, A and B their scores under the divergence (a and b themselves
    under reverse_kl), n_w and n_l the lengths, d = A - B, and e is label_smoothing.
    """

    chosen: Tensor
    """[P] a = log pi(y_w|x) - log pi_ref(y_w|x)."""
    rejected: Tensor
    """[P] b = log pi(y_l|x) - log pi_ref(y_l|x)."""
    policy_margins: Tensor
    """[P] log pi(y_w|x) - log pi(y_l|x)."""
    reference_margins: Tensor
    """[P] log pi_ref(y_w|x) - log pi_ref(y_l|x)."""
    chosen_lengths: Tensor
    """[P] n_w, in tokens."""
    rejected_lengths: Tensor
    """[P] n_l, in tokens."""
    beta: float
    label_smoothing: float = 0.0
    divergence: Divergence = reverse_kl
    discopop_tau: float = 0.05

    @classmethod
    def from_inputs(cls, inputs: LossInputs, *, ld_alpha: float | None, **settings: Any) -> Pairs:
        """Read a PAIRED batch that has the reference's log-probabilities; `settings` are the fields that are no tensors."""
        assert inputs.reference_token_logps is not None
        policy, reference = (_weighed(inputs, logps, ld_alpha) for logps in (inputs.token_logps, inputs.reference_token_logps))
        log_ratios = inputs.sum(policy - reference)
        return cls(
            chosen=inputs.chosen.branches(log_ratios),
            rejected=inputs.rejected.branches(log_ratios),
            policy_margins=_margins(inputs, policy),
            reference_margins=_margins(inputs, reference),
            chosen_lengths=inputs.chosen.lengths.clamp(min=1),
            rejected_lengths=inputs.rejected.lengths.clamp(min=1),
            **settings,
        )

    @property
    def margins(self) -> Tensor:
        """[P] d = A - B."""
        return self.divergence(self.chosen) - self.divergence(self.rejected)

    def mean_margins(self, *, squarable: bool = False) -> Tensor:
        """Return A / n_w - B / n_l, [P]; with `squarable`, held where its square is finite."""
        chosen = self.divergence(self.chosen, squarable=squarable) / self.chosen_lengths
        return chosen - self.divergence(self.rejected, squarable=squarable) / self.rejected_lengths


def _margins(inputs: LossInputs, token_logps: Tensor) -> Tensor:
    """Return what chosen has more than rejected, [T] to [P]."""
    logps = inputs.sum(token_logps)
    return inputs.chosen.branches(logps) - inputs.rejected.branches(logps)


def _weighed(inputs: LossInputs, token_logps: Tensor, ld_alpha: float | None) -> Tensor:
    """Return the log-probabilities, [T], those beyond the shorter branch of a pair multiplied by ld_alpha.

    Length desensitisation (LD-DPO, Liu et al. 2024, arXiv:2409.06411); None leaves them as they are.
    """
    if ld_alpha is None:
        return token_logps
    shorter = inputs.lengths.view(-1, 2).amin(1).repeat_interleave(2)  # [B]
    return token_logps.where(inputs.positions < inputs.expand(shorter), ld_alpha * token_logps)


def reward_metrics(pairs: Pairs) -> dict[str, Term]:
    """Return the implicit rewards beta a and beta b, how often chosen has the greater one (a tie counts 0), and by how much."""
    chosen, rejected = pairs.beta * pairs.chosen.detach(), pairs.beta * pairs.rejected.detach()
    return {
        "rewards/chosen": Term(chosen, per="pair"),
        "rewards/rejected": Term(rejected, per="pair"),
        "rewards/accuracies": Term((chosen > rejected).to(chosen.dtype), per="pair"),
        "rewards/margins": Term(chosen - rejected, per="pair"),
    }
