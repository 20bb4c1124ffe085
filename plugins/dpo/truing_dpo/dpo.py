"""The methods `dpo` and `ipo`: their settings, what they read, and the terms that they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias, get_args

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term, setting

LossType: TypeAlias = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sft",
    "sigmoid_norm",
]
"""The loss types by name; truing_dpo.losses has their formulas, but for `sft`, the chosen tokens' negative log-likelihood."""
DivergenceType: TypeAlias = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
"""The divergences by name; truing_dpo.divergences has their formulas."""

WITH_DIVERGENCE: tuple[LossType, ...] = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "sft", "sigmoid_norm")
"""The loss types that may be combined with another divergence than reverse_kl."""
WITH_LABEL_SMOOTHING: tuple[LossType, ...] = ("sigmoid", "exo_pair", "robust", "sigmoid_norm")
"""The loss types whose formula has label_smoothing in it."""


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

    def __attrs_post_init__(self) -> None:
        _check_loss_types(self.loss_types, self.loss_weights)
        _check_label_smoothing(self.loss_types, self.label_smoothing)
        _check_divergence(self.loss_types, self.f_divergence_type)
        if self.f_divergence_type != "alpha_divergence" and self.f_alpha_divergence_coef != 0.5:
            raise ValueError(
                f"f_alpha_divergence_coef is {self.f_alpha_divergence_coef:g}, but f_divergence_type {self.f_divergence_type} does "
                "not read it; leave it out, or set f_divergence_type to alpha_divergence"
            )

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
        """The reference, unless `sft` is the only loss."""
        return Needs.NOTHING if self.loss_types == ("sft",) else Needs.REFERENCE_LOGPS

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

        pairs = Pairs.from_inputs(
            inputs,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            divergence=divergence(self.f_divergence_type, self.f_alpha_divergence_coef),
            ld_alpha=self.ld_alpha,
        )
        losses: dict[LossType, Term] = {
            kind: Term(LOSSES[kind](pairs), per="pair", weight=weight) for kind, weight in self.weights.items() if kind != "sft"
        }
        return losses, reward_metrics(pairs)


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
        _check_label_smoothing(("ipo",), self.label_smoothing)

    @property
    def needs(self) -> Needs:
        """The reference."""
        return Needs.REFERENCE_LOGPS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss per pair, and DPO's metrics."""
        return DPO(loss_type="ipo", beta=self.beta)(inputs)


def _check_loss_types(types: tuple[LossType, ...], weights: tuple[float, ...]) -> None:
    if not types:
        raise ValueError(f"loss_type is an empty list; name at least one of {', '.join(get_args(LossType))}")
    if len(set(types)) < len(types):
        raise ValueError(
            f"loss_type names a loss twice: {', '.join(types)}; name it once, with the sum of the weights in loss_weights"
        )
    if weights and len(weights) != len(types):
        raise ValueError(
            f"loss_weights has {len(weights)} numbers, but loss_type names {len(types)} ({', '.join(types)}); "
            "give one for each, or leave loss_weights out"
        )


def _check_label_smoothing(types: tuple[LossType, ...], label_smoothing: float) -> None:
    if "exo_pair" in types and label_smoothing == 0:
        raise ValueError("loss_type exo_pair takes the logarithm of label_smoothing, got 0; set it above 0, for example to 1e-3")
    if label_smoothing == 0:
        return
    if "ipo" in types:
        raise ValueError(
            f"ipo has no label_smoothing, got {label_smoothing:g}: its target 1 / (2 beta) already bounds how far the labels are "
            "trusted; set label_smoothing to 0, and a larger beta where labels are noisy"
        )
    if not set(types) & set(WITH_LABEL_SMOOTHING):
        raise ValueError(
            f"label_smoothing is {label_smoothing:g}, but nothing in loss_type ({', '.join(types)}) reads it; "
            f"set it to 0, or use one of {', '.join(WITH_LABEL_SMOOTHING)}"
        )


def _check_divergence(types: tuple[LossType, ...], divergence_type: DivergenceType) -> None:
    others = [kind for kind in types if kind not in WITH_DIVERGENCE]
    if divergence_type != "reverse_kl" and others:
        raise ValueError(
            f"f_divergence_type {divergence_type} does not go with loss_type {', '.join(others)}, whose formula takes log-ratios "
            f"as they are; set it to reverse_kl, or use {', '.join(WITH_DIVERGENCE)}"
        )
