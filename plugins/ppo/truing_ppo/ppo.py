"""The method `ppo`: its settings, what it makes of rewards, and the terms that it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import attrs

from truing import Advantages, Layout, LossInputs, LossOutput, Needs, OnlineLoss, Term, setting
from truing.kl import kl_estimate
from truing.off_policy import SamplerCorrection, held_exp
from truing.settings import refuse_unread

if TYPE_CHECKING:
    from torch import Tensor

Critic: TypeAlias = Literal["separate", "shared"]


@attrs.frozen(kw_only=True)
class PPO(SamplerCorrection, OnlineLoss):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) with a critic and a penalty on drift from a reference.

    As in Ziegler et al. 2019, arXiv:1909.08593, the reward of token t is -kl_coef KL_t, and the last one's has the completion's
    weighted rewards added. A_t is its generalised advantage estimate (arXiv:1506.02438) by the critic's values V_t. With
    w = pi / pi at the start of the update, the loss is the mean over tokens of

        max(-A w, -A clip(w, 1 - cliprange, 1 + cliprange)) + vf_coef/2 max((V - R)^2, (V' - R)^2)

    where R = A + V at the start of the update (A before it is whitened), and V' is V held within cliprange_value of what it was.
    Raises ValueError for settings that do not fit each other.
    """

    name: ClassVar[str] = "ppo"
    layout: ClassVar[Layout] = Layout.ROLLOUT
    default_num_generations: ClassVar[int] = 1

    kl_coef: float = setting(0.05, ge=0, help="Weight of the divergence from the reference in the reward; 0 loads no reference.")
    kl_estimator: Literal["k1", "k3"] = setting("k1", help="Its estimate per token: k1 is the log-ratio x, k3 is exp(-x) - 1 + x.")
    target_kl: float | None = setting(
        None, gt=0, help="Divergence of a completion, in nats, that kl_coef is steered towards; null keeps kl_coef as it is."
    )
    kl_horizon: int = setting(10_000, gt=0, help="Completions over which target_kl changes kl_coef; fewer change it faster.")
    cliprange: float = setting(0.2, gt=0, help="How far a token's probability ratio may move before it is clipped.")
    vf_coef: float = setting(0.1, ge=0, help="Weight of the critic's loss.")
    cliprange_value: float = setting(0.2, gt=0, help="How far a value may move from what it was before its loss is clipped.")
    gamma: float = setting(1.0, gt=0, le=1, help="Discount of a reward per token.")
    lam: float = setting(0.95, ge=0, le=1, help="GAE's lambda: 0 trusts the critic, 1 the sampled rewards.")
    whiten_rewards: bool = setting(False, help="Scale the tokens' rewards to unit variance over the rollout batch.")
    whiten_advantages: bool = setting(True, help="Bring advantages to mean 0 and variance 1 over the rollout batch.")
    num_ppo_epochs: int = setting(4, ge=1, help="Passes over a rollout batch.")
    num_mini_batches: int = setting(1, ge=1, help="Optimiser steps that a pass is cut into.")
    missing_eos_penalty: float | None = setting(
        None, ge=0, help="Taken off the score of a completion that was cut off before it ended; null is none."
    )
    critic: Critic = setting("separate", help="separate is a model of its own, shared a value head on the policy's backbone.")
    critic_model: str | None = setting(
        None, help="Where a separate critic's weights come from; null is the reward model, or without one the policy."
    )
    num_sample_generations: int = setting(10, ge=0, help="How many tables of samples the terminal shows over the run, at most.")
    local_rollout_forward_batch_size: int | None = setting(
        None, ge=1, help="Accepted, and changes nothing, as the run says: trainer.max_tokens_per_batch sizes forwards, by tokens."
    )
    log_entropy: bool = setting(False, help="Also log policy/entropy_avg, the entropy of the policy's distributions.")

    def __attrs_post_init__(self) -> None:
        self.check_correction()
        if self.target_kl is not None and self.kl_coef == 0:
            raise ValueError(
                f"target_kl is {self.target_kl:g}, but kl_coef is 0, and what steers it multiplies it: it would stay 0; "
                "set kl_coef above 0, or leave target_kl out"
            )
        if self.kl_coef == 0:
            refuse_unread(self, "kl_estimator", "kl_coef 0, which leaves the divergence out,", "set kl_coef above 0")
        if self.target_kl is None:
            refuse_unread(self, "kl_horizon", "a run without target_kl", "set target_kl")
        if self.critic == "shared" and self.critic_model is not None:
            raise ValueError(
                f"critic_model is {self.critic_model!r}, but a shared critic is the policy's own model; leave it out, or set "
                "critic to separate"
            )

    @property
    def num_iterations(self) -> int:
        """num_ppo_epochs, by the name that core reads."""
        return self.num_ppo_epochs

    @property
    def num_minibatches(self) -> int:
        """num_mini_batches, by the name that core reads."""
        return self.num_mini_batches

    @property
    def warnings(self) -> list[str]:
        """Of a setting that changes nothing."""
        size = self.local_rollout_forward_batch_size
        if size is None:
            return []
        return [
            f"method.local_rollout_forward_batch_size is {size}, which changes nothing: forwards are filled by tokens, as many as "
            "trainer.max_tokens_per_batch says, or as fit into memory"
        ]

    @property
    def needs(self) -> Needs:
        """Values, and the log-probabilities at the start of the update; the sampler's and the entropy as the settings say."""
        entropy = Needs.ENTROPY if self.log_entropy else Needs.NOTHING
        return Needs.PROXIMAL_LOGPS | Needs.VALUES | entropy | self.correction_needs

    @property
    def rollout_needs(self) -> Needs:
        """Rewards and values; the reference, and the policy's log-probabilities, unless kl_coef is 0."""
        return Needs.REWARDS | Needs.VALUES | (Needs.REFERENCE_LOGPS if self.kl_coef else Needs.NO_LOGPS)

    def initial_state(self) -> dict[str, Any]:
        """Return the coefficient to begin with, where it is steered."""
        return {} if self.target_kl is None else {"kl_coef": self.kl_coef}

    def advantages(self, rollouts: LossInputs) -> Advantages:
        """Return advantages per token, [T], with columns `returns` and `values`; a branch that no reward applies to is dropped."""
        from truing_ppo.gae import generalised_advantages, last_tokens, whitened

        assert rollouts.token_values is not None
        values, scores = rollouts.token_values, self._scores(rollouts)
        keep = rollouts.kept & ~scores.isnan()
        scores, counted = scores.where(keep, 0.0), rollouts.expand(keep)  # [B], [T]
        kl_coef = self.kl_coef if self.target_kl is None else rollouts.state["kl_coef"]
        kl = self._kl(rollouts).where(counted, 0.0) if self.kl_coef else values.new_zeros(len(values))
        rewards = rollouts.expand(scores) * last_tokens(rollouts) - kl_coef * kl
        if self.whiten_rewards:
            rewards = whitened(rewards, counted, shift_mean=False)
        advantages = generalised_advantages(rollouts, rewards, values, gamma=self.gamma, lam=self.lam)
        divergences = rollouts.sum(kl)  # [B]
        metrics = {"objective/scores": scores, "objective/rlhf_reward": scores - kl_coef * divergences}
        if self.kl_coef:
            entropies = -rollouts.logps.where(keep, 0.0)
            metrics |= {
                "objective/kl": divergences,
                "objective/non_score_reward": -kl_coef * divergences,
                "objective/entropy": entropies,
            }
        count = keep.sum().clamp(min=1)
        means = {name: metric.sum() / count for name, metric in metrics.items()}
        state = None
        if self.target_kl is not None:
            state = {"kl_coef": self._steered(kl_coef, float(means["objective/kl"]), int(keep.sum()), self.target_kl)}
            means["objective/kl_coef"] = values.new_tensor(kl_coef)
        return Advantages(
            values=whitened(advantages, counted) if self.whiten_advantages else advantages,
            keep=keep,
            columns={"returns": advantages + values, "values": values},
            metrics={name: Term(mean, per="constant") for name, mean in means.items()},
            state=state,
        )

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the policy's loss and the critic's per token; metrics as the README lists them."""
        assert inputs.advantages is not None and inputs.token_values is not None
        counted = inputs.expand(inputs.kept)
        log_ratios = inputs.log_ratios.where(counted, 0.0)
        ratios, worth = held_exp(log_ratios), inputs.advantages.where(counted, 0.0)
        free, clipped = -worth * ratios, -worth * ratios.clamp(1 - self.cliprange, 1 + self.cliprange)
        values, returns, before = inputs.token_values, inputs.columns["returns"], inputs.columns["values"]
        held = before + (values - before).clamp(-self.cliprange_value, self.cliprange_value)
        errors, held_errors = ((found - returns).square().where(counted, 0.0) / 2 for found in (values, held))
        policy_loss, value_loss = free.maximum(clipped), errors.maximum(held_errors)
        correction = self.correction(inputs)
        if correction is not None:
            correction = correction.where(counted, 0.0)
            policy_loss = policy_loss * correction
        per_token = {
            "loss/policy_avg": policy_loss,
            "loss/value_avg": value_loss,
            "policy/approxkl_avg": log_ratios.square() / 2,
            "policy/clipfrac_avg": (clipped > free).to(ratios.dtype),
            "val/clipfrac_avg": (held_errors > errors).to(ratios.dtype),
            "val/ratio": ratios.where(counted, 0.0),
        }
        if self.log_entropy:
            assert inputs.token_entropy is not None
            per_token["policy/entropy_avg"] = inputs.token_entropy.where(counted, 0.0)
        return LossOutput(
            terms=[Term(policy_loss, per="token"), Term(value_loss, per="token", weight=self.vf_coef)],
            metrics={
                **{name: Term(values.detach(), per="token") for name, values in per_token.items()},
                **self.correction_metrics(inputs, correction),
            },
        )

    def _scores(self, rollouts: LossInputs) -> Tensor:
        """Return the weighted rewards, less the penalty for having been cut off, [B]; NaN where no reward applies."""
        scores = rollouts.weighted_rewards
        if self.missing_eos_penalty is None:
            return scores
        assert rollouts.truncated is not None
        return scores - self.missing_eos_penalty * rollouts.truncated

    def _kl(self, rollouts: LossInputs) -> Tensor:
        """Return the estimated divergence from the reference per token, [T]."""
        assert rollouts.reference_token_logps is not None
        return kl_estimate(self.kl_estimator, rollouts.token_logps - rollouts.reference_token_logps)

    def _steered(self, kl_coef: float, divergence: float, count: int, target: float) -> float:
        """Return the next coefficient, after `count` completions: a proportional controller (arXiv:1909.08593)."""
        error = min(max(divergence / target - 1, -0.2), 0.2)
        return kl_coef * (1 + error * min(1.0, count / self.kl_horizon))
