"""The method `kto`: its settings, what it reads, and the terms that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term, setting

if TYPE_CHECKING:
    from torch import Tensor

LossType: TypeAlias = Literal["kto", "apo_zero_unpaired"]


@attrs.frozen(kw_only=True)
class KTO(Loss):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306), and APO-zero for unpaired data (arXiv:2408.06266).

    With r = log pi(y|x) - log pi_ref(y|x), summed over the tokens of a completion, and s = 1 for a desirable one, -1 for an
    undesirable one, the loss of a completion is

        w (1 - sigmoid(s beta (r - z))).

    w is its side's weight. In `kto`, z = max(0, mean of r(x, y')) estimates KL(pi || pi_ref); the mean is over the samples of the
    whole optimiser step, y' is a completion of another prompt, and no gradient flows through z. In `apo_zero_unpaired`, z = 0.
    """

    name: ClassVar[str] = "kto"
    layout: ClassVar[Layout] = Layout.LABELED

    beta: float = setting(0.1, gt=0, help="Strength of the pull towards the reference; a larger one stays closer.")
    loss_type: LossType = setting("kto", help="kto compares with an estimate of the KL divergence, apo_zero_unpaired with 0.")
    desirable_weight: float = setting(1.0, ge=0, help="Weight of desirable completions.")
    undesirable_weight: float = setting(1.0, ge=0, help="Weight of undesirable completions.")

    def __attrs_post_init__(self) -> None:
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ValueError("desirable_weight and undesirable_weight are both 0, so that nothing would be learned; raise one")

    @property
    def scope(self) -> Literal["example", "step"]:
        """The whole step, which the mean in z is over; `apo_zero_unpaired` has none."""
        return "step" if self.loss_type == "kto" else "example"

    @property
    def needs(self) -> Needs:
        """The reference, and for z completions of other prompts."""
        return Needs.REFERENCE_LOGPS | (Needs.MISMATCHED_LOGPS if self.loss_type == "kto" else Needs.NOTHING)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss per sequence; metrics as the README lists them."""
        assert inputs.labels is not None
        log_ratios, labels = inputs.logps - inputs.reference_logps, inputs.labels  # [B] each
        metrics: dict[str, Term | Sequence[Term]] = {}
        above = log_ratios
        if self.loss_type == "kto":
            z = _kl(inputs)
            above, metrics["kl"] = log_ratios - z, Term(z, per="constant")
        losses = (-self.beta * above.where(labels, -above)).sigmoid()
        weights = losses.new_full(losses.shape, self.undesirable_weight).masked_fill(labels, self.desirable_weight)
        desirable, undesirable = _sides(self.beta * log_ratios.detach(), labels)
        metrics |= {
            "rewards/chosen": desirable,
            "rewards/rejected": undesirable,
            "rewards/margins": (desirable, attrs.evolve(undesirable, weight=-1.0)),
        }
        metrics["logps/chosen"], metrics["logps/rejected"] = _sides(inputs.logps.detach(), labels)
        return LossOutput(terms=[Term(weights * losses, per="sequence")], metrics=metrics)


def _kl(inputs: LossInputs) -> Tensor:
    """Return max(0, mean over the samples of the summed log-ratio of a completion of another prompt), a scalar."""
    assert inputs.mismatched_token_logps is not None and inputs.mismatched_reference_token_logps is not None
    log_ratios = inputs.mismatched_token_logps.detach() - inputs.mismatched_reference_token_logps
    return (log_ratios.sum() / len(inputs.lengths)).clamp(min=0)


def _sides(values: Tensor, labels: Tensor) -> tuple[Term, Term]:
    """Return the means over desirable and over undesirable completions, of [B] values."""
    desirable, undesirable = values.where(labels, 0.0), values.where(~labels, 0.0)
    return Term(desirable, per="desirable"), Term(undesirable, per="undesirable")
