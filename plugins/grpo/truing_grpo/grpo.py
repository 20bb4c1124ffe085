"""The method `grpo`: its settings, what it reads, its advantages, and the terms that it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from truing import Advantages, Layout, LossInputs, LossOutput, Needs, OnlineLoss, Scope, setting
from truing.kl import KLEstimator
from truing.off_policy import SamplerCorrection
from truing_grpo.loss_types import Aggregation, Level, LossType, Scale, check_settings

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class GRPO(SamplerCorrection, OnlineLoss):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and the losses that grew from it.

    An advantage A is how much better a completion's reward is than those of the other completions of its prompt. With w the
    policy's probability of a token over its own at the start of the update, a token costs, in the default loss type `dapo`
    (arXiv:2503.14476),

        -min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A) + beta KL,

    and the loss is the mean over all tokens of the optimiser step. truing_grpo.surrogates and truing_grpo.normalisers have the
    other loss types. Raises ValueError for settings that do not fit each other, or that nothing reads.
    """

    name: ClassVar[str] = "grpo"
    layout: ClassVar[Layout] = Layout.ROLLOUT
    least_generations: ClassVar[int] = 2

    # the loss
    loss_type: LossType = setting("dapo", help="What a token costs, and how costs are averaged.")
    importance_sampling_level: Level | None = setting(
        None, help="Whose ratio is clipped, each token's or the completion's (arXiv:2507.18071); null is token, sequence for gspo."
    )
    epsilon: float = setting(0.2, gt=0, lt=1, help="How far below 1 a ratio may fall before it is clipped.")
    epsilon_high: float | None = setting(
        None, gt=0, help="How far above 1 it may rise; null is epsilon. With cispo, the largest weight of a token."
    )
    delta: float | None = setting(None, gt=1, help="Bound of the ratio where the advantage is negative (arXiv:2505.07291).")
    sapo_temperature_pos: float = setting(1.0, gt=0, help="How fast sapo fades out a ratio, where the advantage is positive.")
    sapo_temperature_neg: float = setting(1.05, gt=0, help="How fast sapo fades out a ratio, where it is not.")
    vespo_k_pos: float = setting(2.0, ge=0, help="How fast vespo's weight falls below 1, where the advantage is not negative.")
    vespo_lambda_pos: float = setting(3.0, gt=0, help="How fast vespo's weight falls above 1, where the advantage is not negative.")
    vespo_k_neg: float = setting(3.0, ge=0, help="How fast vespo's weight falls below 1, where the advantage is negative.")
    vespo_lambda_neg: float = setting(2.0, gt=0, help="How fast vespo's weight falls above 1, where the advantage is negative.")

    # the reference
    beta: float = setting(0.0, ge=0, help="Weight of the KL divergence from the reference; 0 loads none.")
    kl_estimator: KLEstimator = setting("k3", help="How the KL divergence of a token is estimated.")
    use_bias_correction_kl: bool = setting(
        True, help="Weigh the KL divergence by the ratio, so that its gradient is right (arXiv:2512.02556)."
    )

    # the advantages
    scale_rewards: Scale = setting("group", help="Whose standard deviation divides the advantages; none is Dr. GRPO's choice.")
    multi_objective_aggregation: Aggregation = setting(
        "sum_then_normalize", help="Compare the sum of the rewards within a group, or each by itself (GDPO, arXiv:2601.05242)."
    )
    mask_truncated_completions: bool = setting(
        False, help="Leave completions that were cut off at the limit out of the loss (arXiv:2503.14476)."
    )
    overlong_buffer: int | None = setting(
        None, ge=1, help="Tokens before the limit over which a completion is punished more and more (arXiv:2503.14476)."
    )
    overlong_penalty: float = setting(1.0, gt=0, help="What is taken off the reward at the limit, with overlong_buffer.")

    # the tokens that count
    top_entropy_quantile: float = setting(
        1.0, ge=0, le=1, help="Share of the step's tokens that stay in the loss, those of the greatest entropy (arXiv:2506.01939)."
    )
    entropy_coef: float = setting(0.0, ge=0, help="Weight of the mean entropy of a token, which is made larger.")
    off_policy_mask_threshold: float | None = setting(
        None, gt=0, help="Leave out bad completions that the policy finds this many nats a token less likely (arXiv:2512.02556)."
    )

    # the rollouts
    num_iterations: int = setting(1, ge=1, help="Passes over the completions of a rollout.")
    num_minibatches: int = setting(1, ge=1, help="Optimiser steps that a pass is cut into.")
    dynamic_sampling: int = setting(
        0, ge=0, help="How many times a prompt is sampled anew whose completions are all worth the same (arXiv:2503.14476)."
    )
    max_completion_length: int | None = setting(None, ge=1, help="Most tokens of a completion; null is the rollout's.")

    def __attrs_post_init__(self) -> None:
        check_settings(self)

    @property
    def level(self) -> Level:
        """importance_sampling_level, or the loss type's own."""
        return self.importance_sampling_level or ("sequence" if self.loss_type == "gspo" else "token")

    @property
    def high(self) -> float:
        """epsilon_high, or else epsilon."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def needs(self) -> Needs:
        """The log-probabilities at the start of the update, and only what these settings read beside them."""
        needs = Needs.PROXIMAL_LOGPS | self.correction_needs
        if self.beta:
            needs |= Needs.REFERENCE_LOGPS
        if self.off_policy_mask_threshold is not None:
            needs |= Needs.BEHAVIOR_LOGPS
        if self.entropy_coef or self.top_entropy_quantile < 1:
            needs |= Needs.ENTROPY
        return needs

    @property
    def least_completion_length(self) -> int:
        """The least max_completion_length: that of overlong_buffer, or even an empty completion would be punished."""
        return self.overlong_buffer or 1

    @property
    def rollout_needs(self) -> Needs:
        """The rewards."""
        return Needs.REWARDS | Needs.NO_LOGPS

    @property
    def scope(self) -> Scope:
        """The step where a quantile of its entropies is taken."""
        return "step" if self.top_entropy_quantile < 1 else "example"

    def advantages(self, rollouts: LossInputs) -> Advantages:
        """Return the advantage of each completion, [B]; 0 where no reward applies."""
        from truing_grpo.advantages import advantages_of

        return advantages_of(rollouts, self)

    def worth(self, rollouts: LossInputs) -> Tensor:
        """Return what is compared within a prompt, [B]: the punishment of length, and each reward by itself where that is so."""
        from truing_grpo.advantages import worth_of

        return worth_of(rollouts, self)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the policy's term, with the KL divergence in it, and one for entropy_coef; metrics as the README lists them."""
        from truing_grpo.objective import objective

        return objective(inputs, self)
