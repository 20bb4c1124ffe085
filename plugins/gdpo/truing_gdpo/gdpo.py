"""The method `gdpo`: GRPO with each reward normalised by itself."""

from __future__ import annotations

from typing import ClassVar

import attrs

from truing import setting
from truing.settings import refuse_unread
from truing_grpo.grpo import GRPO
from truing_grpo.loss_types import Aggregation


@attrs.frozen(kw_only=True)
class GDPO(GRPO):
    """Group reward-decoupled normalisation policy optimisation (Liu et al. 2026, arXiv:2601.05242): GRPO for several rewards.

    Each reward is normalised within its group, (r - mean) / (std + 1e-4), before the weighted sum over rewards, which is divided by
    its standard deviation in the batch + 1e-4. So each reward counts by its weight, whatever its scale, and completions that differ
    in which rewards they earn have different advantages. It is the method `grpo` with multi_objective_aggregation
    normalize_then_sum, and has all of its settings. Raises ValueError for settings that do not fit each other.
    """

    name: ClassVar[str] = "gdpo"

    multi_objective_aggregation: Aggregation = setting(
        "normalize_then_sum", help="Only normalize_then_sum, which is what GDPO is; GRPO has the other."
    )

    def __attrs_post_init__(self) -> None:
        if self.multi_objective_aggregation != "normalize_then_sum":
            raise ValueError(
                f"multi_objective_aggregation is {self.multi_objective_aggregation}, which normalises the sum of the rewards and "
                "so cannot tell completions apart that earn the same sum by different rewards: that is GRPO; leave it out, or use "
                "the method grpo"
            )
        refuse_unread(self, "scale_rewards", "gdpo, which divides each reward by its group's deviation,", "use the method grpo")
        super().__attrs_post_init__()
