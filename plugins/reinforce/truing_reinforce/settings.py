"""What the methods `reinforce` and `rloo` can both be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from truing import Layout, LossInputs, OnlineLoss, setting
from truing.off_policy import SamplerCorrection

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class PolicyGradient(SamplerCorrection, OnlineLoss):
    """The settings of a policy gradient without a critic. Raises ValueError for a range of rewards that is none."""

    layout: ClassVar[Layout] = Layout.ROLLOUT

    num_iterations: int = setting(1, ge=1, help="Passes over a rollout batch.")
    num_minibatches: int = setting(1, ge=1, help="Optimiser steps that a pass is cut into.")
    normalize_advantages: bool = setting(False, help="Bring advantages to mean 0 and variance 1 over the rollout batch.")
    reward_clip_range: tuple[float, float] | None = setting(
        None, help="Least and greatest weighted reward; what lies beyond is set to them. null clips nothing."
    )
    mask_truncated_completions: bool = setting(False, help="Do not train on completions that were cut off before they ended.")

    def __attrs_post_init__(self) -> None:
        self.check_correction()
        if self.reward_clip_range is not None and not self.reward_clip_range[0] < self.reward_clip_range[1]:
            least, greatest = self.reward_clip_range
            raise ValueError(f"reward_clip_range must be [least, greatest] with least < greatest, got [{least:g}, {greatest:g}]")

    def worth(self, rollouts: LossInputs) -> Tensor:
        """Return scores, [B]: weighted rewards, held within reward_clip_range; NaN where no reward applies."""
        scores = rollouts.weighted_rewards
        return scores if self.reward_clip_range is None else scores.clamp(*self.reward_clip_range)
