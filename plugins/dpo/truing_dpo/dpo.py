"""The methods `dpo` and `ipo`: their settings, what they read, and the terms that they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Scope, Term, setting
from truing.settings import refuse_unread
from truing_dpo.loss_types import (
    OF_THE_STEP,
    DivergenceType,
    LossType,
    check_divergence,
    check_label_smoothing,
    check_loss_types,
    check_weighting,
)


@attrs.frozen(kw_only=True)
class DPO(Loss):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and the losses that grew from it.

    The term of rpo_alpha is a mean over all chosen tokens of the step, where RPO's paper takes the mean over each pair's own.
    Raises ValueError for settings that do not fit each other.
    """

    name: ClassVar[str] = "dpo"
    layout: ClassVar[Layout] = Layout.PAIRED

    beta: float = setting(0.1, gt=0, help="Strength of the pull towards the reference; a larger one stays closer.")
    loss_type: LossType | tuple[LossType, ...] = setting("sigmoid", help="The loss, or a list of losses to sum.")
    loss_weights: tuple[float, ...] = setting((), ge=0, help="One weight for each loss of loss_type; an empty list is 1.0 each.")
    label_smoothing: float = setting(0.0, ge=0, lt=0.5, help="Probability that a pair's labels are flipped.")
    f_divergence_type: DivergenceType = setting("reverse_kl", help="Divergence from the reference (arXiv:2309.16240).")
    f_alpha_divergence_coef: float = setting(0.5, ge=0, help="alpha of alpha_divergence; 0 is forward_kl and 1 reverse_kl.")
    rpo_alpha: float = setting(
        0.0, ge=0, help="Weight of the mean cost of all chosen tokens of a step, mixed in (after arXiv:2404.19733)."
    )
    ld_alpha: float | None = setting(
        None,
        ge=0,
        le=1,
        help="Weight of tokens beyond the shorter completion's length (arXiv:2409.06411); null counts them in full.",
    )
    discopop_tau: float = setting(0.05, gt=0, help="Temperature at which discopop goes over from one of its losses to the other.")
    use_weighting: bool = setting(False, help="Weigh pairs by how likely the policy would write them itself (arXiv:2406.11827).")

    def __attrs_post_init__(self) -> None:
        check_loss_types(self.loss_types, self.loss_weights)
        check_label_smoothing(self.loss_types, self.label_smoothing)
        check_divergence(self.loss_types, self.f_divergence_type)
        if self.f_divergence_type != "alpha_divergence":
            why = f"f_divergence_type {self.f_divergence_type}"
            refuse_unread(self, "f_alpha_divergence_coef", why, "set f_divergence_type to alpha_divergence")
        if self.use_weighting:
            check_weighting(self.loss_types)
        if "discopop" not in self.loss_types:
            refuse_unread(self, "discopop_tau", f"loss_type {', '.join(self.loss_types)}", "use discopop")

    @property
    def loss_types(self) -> tuple[LossType, ...]:
        """The names in loss_type, of which there is at least one."""
        return (self.loss_type,) if isinstance(self.loss_type, str) else tuple(self.loss_type)

    @property
    def weights(self) -> Mapping[LossType, float]:
        """The weight of each loss by its name."""
        return dict(zip(self.loss_types, self.loss_weights or [1.0] * len(self.loss_types), strict=True))

    @property
    def needs(self) -> Needs:
        """The reference, unless `sft` is the only loss; for use_weighting the squared probabilities too."""
        if self.loss_types == ("sft",):
            return Needs.NOTHING
        return Needs.REFERENCE_LOGPS | Needs.SQUARED_PROBS if self.use_weighting else Needs.REFERENCE_LOGPS

    @property
    def scope(self) -> Scope:
        """The step for losses that sort its pairs."""
        return "step" if set(self.loss_types) & set(OF_THE_STEP) else "example"

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return one term for each loss, and one for rpo_alpha; metrics as the README lists them."""
        metrics = {
            "logps/chosen": Term(inputs.chosen.logps.detach(), per="pair"),
            "logps/rejected": Term(inputs.rejected.logps.detach(), per="pair"),
        }
        losses: dict[LossType, Term] = {}
        if self.needs:
            losses, rewards = self._preference(inputs)
            metrics |= rewards
        nll = -inputs.chosen.token_logps
        if "sft" in self.weights:
            losses["sft"] = Term(nll, per="chosen_token", weight=self.weights["sft"])
        if len(losses) > 1:
            metrics |= {f"loss/{kind}": Term(term.values.detach(), per=term.per) for kind, term in losses.items()}
        terms = list(losses.values())
        if self.rpo_alpha:
            terms.append(Term(nll, per="chosen_token", weight=self.rpo_alpha))
        if self.rpo_alpha or "sft" in losses:
            metrics["nll_loss"] = Term(nll.detach(), per="chosen_token")
        return LossOutput(terms=terms, metrics=metrics)

    def _preference(self, inputs: LossInputs) -> tuple[dict[LossType, Term], dict[str, Term]]:
        """Return the terms that compare chosen with rejected, and the metrics of the implicit rewards."""
        from truing_dpo.divergences import divergence
        from truing_dpo.losses import LOSSES
        from truing_dpo.pairs import Pairs, reward_metrics
        from truing_dpo.weighting import pair_weights

        pairs = Pairs.from_inputs(
            inputs,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            divergence=divergence(self.f_divergence_type, self.f_alpha_divergence_coef),
            ld_alpha=self.ld_alpha,
            discopop_tau=self.discopop_tau,
        )
        metrics = reward_metrics(pairs)
        values = {kind: LOSSES[kind](pairs) for kind in self.loss_types if kind != "sft"}
        if self.use_weighting:
            weights = pair_weights(inputs)
            values = {kind: weights * value for kind, value in values.items()}
            metrics["wpo_weights"] = Term(weights, per="pair")
        return {kind: Term(value, per="pair", weight=self.weights[kind]) for kind, value in values.items()}, metrics


@attrs.frozen(kw_only=True)
class IPO(Loss):
    """Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036): DPO's loss type `ipo` as a method of its own.

    Raises ValueError for a label_smoothing other than 0.
    """

    name: ClassVar[str] = "ipo"
    layout: ClassVar[Layout] = Layout.PAIRED

    beta: float = setting(0.1, gt=0, help="The paper's tau: the margin per token is drawn to 1 / (2 beta).")
    label_smoothing: float = setting(0.0, help="Only 0: IPO has no label smoothing; a larger beta trusts the labels less.")

    def __attrs_post_init__(self) -> None:
        check_label_smoothing(("ipo",), self.label_smoothing)

    @property
    def needs(self) -> Needs:
        """The reference."""
        return Needs.REFERENCE_LOGPS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss per pair, and DPO's metrics."""
        return DPO(loss_type="ipo", beta=self.beta)(inputs)
