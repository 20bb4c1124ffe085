"""Losses that keep every promise: what the checks of losses must pass."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F

from truing.loss import Advantages, Layout, Loss, LossInputs, LossOutput, Needs, OnlineLoss, Term
from truing.settings import setting


@attrs.frozen(kw_only=True)
class Hinge(Loss):
    name: ClassVar[str] = "hinge"
    layout: ClassVar[Layout] = Layout.PAIRED
    beta: float = setting(0.1, gt=0, help="Scale.")

    @property
    def needs(self) -> Needs:
        return Needs.NOTHING

    def __call__(self, inputs: LossInputs) -> LossOutput:
        margins = inputs.chosen.logps - inputs.rejected.logps
        return LossOutput([Term((1 - self.beta * margins).relu(), "pair")], {"margins": Term(margins, "pair")})


@attrs.frozen(kw_only=True)
class WithReference(Hinge):
    """DPO with a token-level term on the chosen side and its prompt."""

    @property
    def needs(self) -> Needs:
        return Needs.REFERENCE_LOGPS | Needs.PROMPT_LOGPS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        logits = inputs.logps - inputs.reference_logps
        margins = logits[::2] - logits[1::2]
        assert inputs.prompt_token_logps is not None
        return LossOutput(
            [
                Term(-F.logsigmoid(self.beta * margins), "pair"),
                Term(-inputs.chosen.token_logps, "chosen_token", weight=0.5),
                Term(-inputs.prompt_token_logps, "chosen_token", weight=0.5),
            ],
            {"beta": Term(torch.tensor(self.beta), "constant")},
        )


@attrs.frozen(kw_only=True)
class Labelled(Loss):
    """KTO's shape: the KL estimate is a mean over the step."""

    name: ClassVar[str] = "labelled"
    layout: ClassVar[Layout] = Layout.LABELED
    scope: ClassVar[Any] = "step"

    @property
    def needs(self) -> Needs:
        return Needs.REFERENCE_LOGPS | Needs.MISMATCHED_LOGPS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        kl = (inputs.mismatched_token_logps - inputs.mismatched_reference_token_logps).detach().sum() / len(inputs.lengths)
        rewards = inputs.logps - inputs.reference_logps - kl
        signs = torch.where(inputs.labels, 1.0, -1.0)
        return LossOutput([Term(1 - (signs * rewards).sigmoid(), "sequence")])


@attrs.frozen(kw_only=True)
class Grpo(OnlineLoss):
    name: ClassVar[str] = "group"
    layout: ClassVar[Layout] = Layout.ROLLOUT

    @property
    def needs(self) -> Needs:
        return Needs.PROXIMAL_LOGPS

    @property
    def rollout_needs(self) -> Needs:
        return Needs.REWARDS

    def advantages(self, rollouts: LossInputs) -> Advantages:
        rewards = rollouts.rewards.nanmean(1)
        groups = rewards.unflatten(0, (-1, len(rewards) // (int(rollouts.tree_ids.max()) + 1)))
        equal = (groups == groups[:, :1]).all(1, keepdim=True)
        values = torch.where(equal, 0.0, (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4))
        return Advantages(values.flatten(), metrics={"reward": Term(rewards, "sequence")})

    def __call__(self, inputs: LossInputs) -> LossOutput:
        ratio = inputs.log_ratios.exp()
        weights = inputs.expand(inputs.advantages if inputs.keep is None else inputs.advantages * inputs.keep)
        return LossOutput([Term(-torch.minimum(ratio * weights, ratio.clamp(0.8, 1.2) * weights), "token")])


@attrs.frozen(kw_only=True)
class Stateful(Grpo):
    """PPO's shape: a critic, columns, and state that the advantages move."""

    @property
    def needs(self) -> Needs:
        return Needs.PROXIMAL_LOGPS | Needs.VALUES

    @property
    def rollout_needs(self) -> Needs:
        return Needs.REWARDS | Needs.VALUES

    def initial_state(self) -> dict[str, Any]:
        return {"baseline": torch.zeros(()), "calls": 0, "history": [0.0]}

    def advantages(self, rollouts: LossInputs) -> Advantages:
        returns = rollouts.expand(rollouts.rewards.nanmean(1)) - rollouts.state["baseline"]
        state = {**rollouts.state, "calls": rollouts.state["calls"] + 1}
        return Advantages(returns - rollouts.token_values, columns={"returns": returns}, state=state)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        keep = torch.ones_like(inputs.lengths) if inputs.keep is None else inputs.keep
        policy = inputs.log_ratios.exp() * inputs.advantages
        values = (inputs.token_values - inputs.columns["returns"]) ** 2
        counted = inputs.expand(keep.to(policy.dtype))
        return LossOutput([Term(-policy * counted, "token"), Term(values * counted, "token", 0.1)], state=inputs.state)


@attrs.frozen(kw_only=True)
class OnlinePairs(Grpo):
    """Online DPO's shape: the best and the worst of each group."""

    @property
    def needs(self) -> Needs:
        return Needs.NOTHING

    def advantages(self, rollouts: LossInputs) -> Advantages:
        rewards = rollouts.rewards.nanmean(1)
        trees = range(int(rollouts.tree_ids.max()) + 1)
        members = [(rollouts.tree_ids == tree).nonzero()[:, 0] for tree in trees]
        pairs = torch.stack([torch.stack([ids[rewards[ids].argmax()], ids[rewards[ids].argmin()]]) for ids in members])
        return Advantages(torch.zeros_like(rewards), pairs=pairs)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput([Term(-F.logsigmoid(inputs.chosen.logps - inputs.rejected.logps), "pair")])
