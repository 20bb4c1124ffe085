"""The method `reinforce`: its settings, what it makes of rewards, and the terms that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import attrs

from truing import Advantages, LossInputs, LossOutput, Needs, Term, setting
from truing.kl import KLEstimator, kl_estimate
from truing.off_policy import held_exp
from truing.settings import refuse_unread
from truing_reinforce.settings import PolicyGradient

if TYPE_CHECKING:
    from torch import Tensor

Baseline: TypeAlias = Literal["none", "moving_average", "leave_one_out", "batch"]
Level: TypeAlias = Literal["token", "sequence"]


@attrs.frozen(kw_only=True)
class Reinforce(PolicyGradient):
    """REINFORCE (Williams 1992) with a baseline, as REINFORCE++ (Hu et al. 2025, arXiv:2501.03262) or with clipped ratios.

    A completion's advantage A is its weighted rewards, less beta times its divergence from the reference where `kl_in` is reward,
    less the baseline. With w = pi / pi at the start of the update, of a token or of a whole completion, the loss is the mean over
    these of

        -min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A)

    whose gradient is -A grad log pi in an update's first step; where `kl_in` is loss, beta times the divergence is added to it.
    Raises ValueError for settings that do not fit each other.
    """

    name: ClassVar[str] = "reinforce"

    baseline: Baseline = setting(
        "batch",
        help="What is taken off a reward: nothing, the average of earlier batches, the mean of its prompt's other completions, or, "
        "by batch, the mean over all tokens, divided by their standard deviation (REINFORCE++).",
    )
    baseline_decay: float = setting(0.9, ge=0, lt=1, help="Weight of the past in moving_average.")
    beta: float = setting(0.0, ge=0, help="Weight of the divergence from the reference; 0 loads no reference.")
    kl_in: Literal["reward", "loss"] = setting(
        "reward", help="Where the divergence counts: in the reward, or as a term of the loss."
    )
    kl_estimator: KLEstimator | None = setting(
        None, help="Its estimate per token: k1, k2 or k3; null is k1 in the reward and k2 in the loss."
    )
    importance_sampling_level: Level = setting("token", help="Whether ratios are of tokens or of whole completions.")
    epsilon: float = setting(0.2, gt=0, help="How far a ratio may fall below 1 before it is clipped.")
    epsilon_high: float | None = setting(None, gt=0, help="How far it may rise above 1; null is epsilon.")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.baseline != "moving_average":
            refuse_unread(self, "baseline_decay", f"baseline {self.baseline}", "set baseline to moving_average")
        if self.baseline == "batch" and self.normalize_advantages:
            raise ValueError("normalize_advantages is true, but baseline batch has normalised them already; set one of the two")
        if self.baseline == "batch" and self.importance_sampling_level == "sequence":
            raise ValueError(
                "importance_sampling_level is sequence, but the advantages of baseline batch are those of tokens; set it to token, "
                "or take another baseline"
            )
        if self.importance_sampling_level == "sequence" and self.correction_level == "token":
            correction = self.importance_sampling_correction
            raise ValueError(
                f"importance_sampling_correction is {correction}, but what is weighed here are whole completions; set it to "
                f"{correction.replace('token', 'sequence')}"
            )
        if self.beta == 0:
            for name in ("kl_in", "kl_estimator"):
                refuse_unread(self, name, "beta 0, which leaves the divergence out,", "set beta above 0")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator is k1 in the loss, where its gradient does not depend on the reference and is 0 on average; set it "
                "to k2 or k3, or kl_in to reward"
            )

    @property
    def least_generations(self) -> int:
        """The fewest completions of a prompt that there must be."""
        return 2 if self.baseline == "leave_one_out" else 1

    @property
    def needs(self) -> Needs:
        """The log-probabilities at the start of the update; the reference where the divergence is in the loss; the sampler's."""
        reference = Needs.REFERENCE_LOGPS if self._kl_is_in("loss") else Needs.NOTHING
        return Needs.PROXIMAL_LOGPS | reference | self.correction_needs

    @property
    def rollout_needs(self) -> Needs:
        """Rewards; log-probabilities, the reference's too, where the divergence is in the reward."""
        return Needs.REWARDS | (Needs.REFERENCE_LOGPS if self._kl_is_in("reward") else Needs.NO_LOGPS)

    def initial_state(self) -> dict[str, Any]:
        """Return a moving average of no batch."""
        return {"average": 0.0, "batches": 0} if self.baseline == "moving_average" else {}

    def advantages(self, rollouts: LossInputs) -> Advantages:
        """Return advantages, [T] with the baseline `batch` and else [B]; a branch that no reward applies to is dropped."""
        from truing_reinforce.baselines import leave_one_out, normalised

        scores = self.worth(rollouts)
        scored = rollouts.kept & ~scores.isnan()
        scores, counted, state, metrics = scores.where(scored, 0.0), rollouts.expand(scored), None, {}
        costs = None
        if self._kl_is_in("reward"):
            kl = self._kl(rollouts).where(counted, 0.0)
            costs, metrics["kl"] = self.beta * kl, Term(kl.sum() / counted.sum().clamp(min=1), per="constant")
        if self.baseline == "batch":
            rewards = rollouts.expand(scores)
            values = normalised(rewards if costs is None else rewards - rollouts.to_go(costs), counted)
        else:
            rewards = scores if costs is None else scores - rollouts.sum(costs)
            if self.baseline == "leave_one_out":
                values = leave_one_out(rewards, rollouts.tree_ids, scored)
            elif self.baseline == "moving_average":
                average, state = self._averaged(rewards, scored, rollouts.state)
                values = (rewards - average).where(scored, 0.0)
            else:
                values = rewards.where(scored, 0.0)
            if self.normalize_advantages:
                values = normalised(values, scored)
        return Advantages(values=values, keep=self._keep(rollouts, scored), metrics=metrics, state=state)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the policy's loss, and the divergence where it is a term, per token or per sequence; metrics as in the README."""
        assert inputs.advantages is not None
        advantages, kept = inputs.advantages, inputs.kept
        counted = inputs.expand(kept)
        log_ratios = inputs.log_ratios.where(counted, 0.0)
        per: Any = "token"
        if self.importance_sampling_level == "sequence":
            per, log_ratios, advantages = "sequence", inputs.sum(log_ratios), advantages.where(kept, 0.0)
        elif self.baseline == "batch":
            advantages = advantages.where(counted, 0.0)
        else:
            advantages = inputs.expand(advantages.where(kept, 0.0))
        least, most = 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        ratios = held_exp(log_ratios)
        costs = -(ratios * advantages).minimum(ratios.clamp(least, most) * advantages)
        correction = self.correction(inputs)
        if correction is not None:
            correction = correction.where(counted, 0.0)
            costs = costs * (correction if per == "token" else inputs.mean(correction))
        terms = [Term(costs, per=per)]
        low, high = (ratios < least) & (advantages < 0), (ratios > most) & (advantages > 0)
        clipped = {"low_mean": low, "high_mean": high, "region_mean": low | high}
        metrics = {f"clip_ratio/{name}": Term(found.to(ratios.dtype), per=per) for name, found in clipped.items()}
        metrics |= self.correction_metrics(inputs, correction)
        if self._kl_is_in("loss"):
            kl = self._kl(inputs).where(counted, 0.0)
            terms.append(Term(kl if per == "token" else inputs.sum(kl), per=per, weight=self.beta))
            metrics["kl"] = Term(kl.detach(), per="token")
        return LossOutput(terms=terms, metrics=metrics)

    def _kl_is_in(self, where: str) -> bool:
        return self.beta > 0 and self.kl_in == where

    def _kl(self, inputs: LossInputs) -> Tensor:
        """Return the estimated divergence from the reference per token, [T]."""
        assert inputs.reference_token_logps is not None
        kind = self.kl_estimator or ("k1" if self.kl_in == "reward" else "k2")
        return kl_estimate(kind, inputs.token_logps - inputs.reference_token_logps)

    def _averaged(self, rewards: Tensor, scored: Tensor, state: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Return the average of earlier batches, this one's own mean where there is none, and the state with this one in it."""
        batches = int(state["batches"])
        if not scored.any():
            return float(state["average"]), dict(state)
        mean = float(rewards[scored].mean())
        average = float(state["average"]) if batches else mean
        after = self.baseline_decay * average + (1 - self.baseline_decay) * mean
        return average, {"average": after, "batches": batches + 1}

    def _keep(self, rollouts: LossInputs, scored: Tensor) -> Tensor:
        if not self.mask_truncated_completions:
            return scored
        assert rollouts.truncated is not None
        return scored & ~rollouts.truncated
