"""The method `rloo`: the method `reinforce` with the settings of its paper."""

from __future__ import annotations

from typing import ClassVar

import attrs

from truing import Advantages, LossInputs, LossOutput, Needs, setting
from truing_reinforce.reinforce import Reinforce
from truing_reinforce.settings import PolicyGradient


@attrs.frozen(kw_only=True)
class RLOO(PolicyGradient):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740): the baseline is the mean of the prompt's other completions.

    It is `reinforce` with baseline leave_one_out, ratios of whole completions, and the divergence k1 of a completion in its reward.
    """

    name: ClassVar[str] = "rloo"
    least_generations: ClassVar[int] = 2
    default_num_generations: ClassVar[int] = 2

    beta: float = setting(0.05, ge=0, help="Weight of the divergence from the reference in the reward; 0 loads no reference.")
    epsilon: float = setting(0.2, gt=0, help="How far a completion's ratio may fall below 1 before it is clipped.")
    epsilon_high: float | None = setting(None, gt=0, help="How far it may rise above 1; null is epsilon.")

    def __attrs_post_init__(self) -> None:
        self.as_reinforce.check_correction()  # it is made: what reinforce refuses is refused

    @property
    def as_reinforce(self) -> Reinforce:
        """The same method by the name `reinforce`."""
        return Reinforce(baseline="leave_one_out", importance_sampling_level="sequence", **attrs.asdict(self))

    @property
    def needs(self) -> Needs:
        """The log-probabilities at the start of the update."""
        return self.as_reinforce.needs

    @property
    def rollout_needs(self) -> Needs:
        """Rewards; log-probabilities, the reference's too, unless beta is 0."""
        return self.as_reinforce.rollout_needs

    def advantages(self, rollouts: LossInputs) -> Advantages:
        """Return advantages, [B]; a branch that no reward applies to is dropped."""
        return self.as_reinforce.advantages(rollouts)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the policy's loss per sequence; metrics as the README says."""
        return self.as_reinforce(inputs)
