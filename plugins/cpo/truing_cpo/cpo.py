"""The methods `cpo` and `simpo`: their settings, and the terms that they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term, setting

if TYPE_CHECKING:
    from torch import Tensor

LossType: TypeAlias = Literal["sigmoid", "hinge", "ipo"]
"""The loss types of `cpo` by name."""


@attrs.frozen(kw_only=True)
class CPO(Loss):
    """Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417): DPO's comparison without its reference.

    With x the difference of chosen's and rejected's log-probabilities, and e the label smoothing, a pair costs
    -(1 - e) log sigmoid(beta x) - e log sigmoid(-beta x), or what `loss_type` says instead; beside it, cpo_alpha times the mean
    cost of a chosen token. Raises ValueError for a label_smoothing that nothing reads.
    """

    name: ClassVar[str] = "cpo"
    layout: ClassVar[Layout] = Layout.PAIRED

    beta: float = setting(0.1, gt=0, help="Scale of the difference of log-probabilities.")
    loss_type: LossType = setting(
        "sigmoid",
        help="The loss of a pair.",
        instead={
            "simpo": "method: simpo, whose cpo_alpha is 1 too; 0 is the paper's",
            "alphapo": "method: {name: simpo, cpo_alpha: 0, alpha: ...}",
        },
    )
    label_smoothing: float = setting(0.0, ge=0, lt=0.5, help="Probability that a pair's labels are flipped; sigmoid only.")
    cpo_alpha: float = setting(1.0, ge=0, help="Weight of the mean cost of all chosen tokens of a step.")

    def __attrs_post_init__(self) -> None:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, but loss_type {self.loss_type} does not read it; set it to 0, or "
                "use loss_type sigmoid"
            )

    @property
    def needs(self) -> Needs:
        """The policy's log-probabilities alone."""
        return Needs.NOTHING

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss per pair, and the cost of each chosen token; metrics as the README lists them."""
        from truing_cpo.losses import hinge, ipo, smoothed

        logps = inputs.mean_logps if self.loss_type == "ipo" else inputs.logps
        losses: dict[LossType, Callable[[Tensor], Tensor]] = {
            "sigmoid": lambda margins: smoothed(self.beta * margins, self.label_smoothing),
            "hinge": lambda margins: hinge(self.beta * margins),
            "ipo": lambda margins: ipo(margins, self.beta),
        }
        return _output(inputs, logps, logps, self.beta, losses[self.loss_type], self.cpo_alpha)


@attrs.frozen(kw_only=True)
class SimPO(Loss):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734), and AlphaPO (Gupta et al. 2025, arXiv:2501.03884).

    With p the mean log-probability of a completion's tokens, the reward is r = p, or (1 - exp(-alpha p)) / alpha where alpha is not
    0. A pair costs -log sigmoid(beta (r_w - r_l) - simpo_gamma); beside it, cpo_alpha times the mean cost of a chosen token, which
    the paper does not have.
    """

    name: ClassVar[str] = "simpo"
    layout: ClassVar[Layout] = Layout.PAIRED

    beta: float = setting(2.0, gt=0, help="Scale of the difference of rewards.")
    simpo_gamma: float = setting(1.0, ge=0, help="Margin that beta times the difference is to exceed.", also=("gamma",))
    label_smoothing: float = setting(0.0, ge=0, lt=0.5, help="Probability that a pair's labels are flipped.")
    cpo_alpha: float = setting(1.0, ge=0, help="Weight of the mean cost of all chosen tokens of a step; 0 is the paper's SimPO.")
    alpha: float = setting(0.0, help="AlphaPO's alpha, which bends the reward; 0 is SimPO's own.")

    @property
    def needs(self) -> Needs:
        """The policy's log-probabilities alone."""
        return Needs.NOTHING

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss per pair, and the cost of each chosen token; metrics as the README lists them."""
        from truing_cpo.losses import alpha_reward, smoothed

        logps = inputs.mean_logps

        def loss(margins: Tensor) -> Tensor:
            return smoothed(self.beta * margins - self.simpo_gamma, self.label_smoothing)

        return _output(inputs, logps, alpha_reward(logps, self.alpha), self.beta, loss, self.cpo_alpha)


def _output(
    inputs: LossInputs, logps: Tensor, rewards: Tensor, beta: float, loss: Callable[[Tensor], Tensor], cpo_alpha: float
) -> LossOutput:
    """Compare the rewards of chosen and rejected; `logps` and `rewards` are [B], and `loss` maps differences [P] to values [P]."""
    chosen, rejected = inputs.chosen.branches(rewards), inputs.rejected.branches(rewards)
    terms = [Term(loss(chosen - rejected), per="pair")]
    metrics = {
        "rewards/chosen": Term(beta * chosen.detach(), per="pair"),
        "rewards/rejected": Term(beta * rejected.detach(), per="pair"),
        "rewards/accuracies": Term((chosen > rejected).to(chosen.dtype), per="pair"),
        "rewards/margins": Term(beta * (chosen - rejected).detach(), per="pair"),
        "logps/chosen": Term(inputs.chosen.branches(logps).detach(), per="pair"),
        "logps/rejected": Term(inputs.rejected.branches(logps).detach(), per="pair"),
    }
    if cpo_alpha:
        nll = -inputs.chosen.token_logps  # [tokens of the chosen completions]
        terms.append(Term(nll, per="chosen_token", weight=cpo_alpha))
        metrics["nll_loss"] = Term(nll.detach(), per="chosen_token")
    return LossOutput(terms=terms, metrics=metrics)
