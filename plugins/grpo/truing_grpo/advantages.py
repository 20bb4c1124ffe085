"""Advantages: how much better a completion's rewards are than those of the other completions of its prompt.

Rewards are [B, R], one column for each reward, NaN where it does not apply; everything is float64 and without gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from truing import Advantages, LossInputs
from truing_grpo.loss_types import Scale, check_buffer

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO

EPSILON = 1e-4
"""Added to a standard deviation before it divides."""


def advantages_of(rollouts: LossInputs, method: GRPO) -> Advantages:
    """Return advantages of [B] completions as the method's settings say; 0 where no reward applies."""
    rewards, weights = _rewards(rollouts, method)
    groups = Groups.of(rollouts.tree_ids)
    if method.multi_objective_aggregation == "normalize_then_sum":
        values = normalize_then_sum(rewards, weights, groups)
    else:
        values = sum_then_normalize(rewards, weights, groups, method.scale_rewards)
    keep = None
    if method.mask_truncated_completions:
        assert rollouts.truncated is not None
        keep = ~rollouts.truncated
    return Advantages(values.nan_to_num(0.0).to(rollouts.token_logps.dtype), keep=keep)


def worth_of(rollouts: LossInputs, method: GRPO) -> Tensor:
    """Return what completions are compared by within their group, [B]; NaN where no reward applies."""
    rewards, weights = _rewards(rollouts, method)
    if method.multi_objective_aggregation == "sum_then_normalize":
        return weighted_sums(rewards, weights)
    normalised = normalised_sums(rewards, weights, Groups.of(rollouts.tree_ids))
    return normalised.round(decimals=9)  # of rewards that make up for each other, rounding would be left


def _rewards(rollouts: LossInputs, method: GRPO) -> tuple[Tensor, Tensor]:
    """Return rewards [B, R] and weights [R]; with overlong_buffer, its punishment is the last of them."""
    assert rollouts.rewards is not None and rollouts.reward_weights is not None
    rewards, weights = rollouts.rewards.double(), rollouts.reward_weights.double()
    buffer, limit = method.overlong_buffer, rollouts.max_completion_length
    if buffer is None:
        return rewards, weights
    assert limit is not None
    check_buffer(buffer, limit)
    punishment = overlong_punishment(rollouts.lengths, limit, buffer).masked_fill(rewards.isnan().all(1), torch.nan)
    return torch.cat([rewards, punishment[:, None]], 1), torch.cat([weights, weights.new_tensor([method.overlong_penalty])])


@attrs.frozen(eq=False)
class Groups:
    """Which of B completions are compared with each other; values that are NaN are left out, and stay NaN."""

    ids: Tensor
    """[B] int64, from 0 to `size` - 1."""
    size: int

    @classmethod
    def of(cls, owners: Tensor) -> Groups:
        """Return the groups of completions with the same owner, [B] int64; they may be of any sizes and in any order."""
        names, ids = owners.unique(return_inverse=True)
        return cls(ids, len(names))

    def sums(self, values: Tensor) -> Tensor:
        """Return each group's sum, [B] to [size]."""
        return values.new_zeros(self.size).index_add(0, self.ids, values.nan_to_num(0.0))

    def counts(self, values: Tensor) -> Tensor:
        """Return how many values of each group are there, [B] to [size]."""
        return self.sums((~values.isnan()).to(values.dtype))

    def centred(self, values: Tensor) -> Tensor:
        """Return the distance of each value from its group's mean, [B] to [B]: exactly 0 where a group's values are equal.

        They are taken from the group's lowest first: a mean of equal values may be rounded, but a mean of zeros is not.
        """
        lowest = values.new_full((self.size,), torch.inf).scatter_reduce(0, self.ids, values.nan_to_num(torch.inf), "amin")
        above = values - lowest[self.ids]
        return above - (self.sums(above) / self.counts(above).clamp(min=1))[self.ids]

    def deviations(self, centred: Tensor) -> Tensor:
        """Return each group's standard deviation, unbiased, repeated for its members, [B] to [B]; 0 for a group of one."""
        return (self.sums(centred.square()) / (self.counts(centred) - 1).clamp(min=1)).sqrt()[self.ids]


def weighted_sums(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over rewards that apply, by weight, [B, R] and [R] to [B]; NaN where none does."""
    return (rewards * weights).nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)


def sum_then_normalize(rewards: Tensor, weights: Tensor, groups: Groups, scale: Scale) -> Tensor:
    """Return (r - mean of the group) / (std + 1e-4) of the weighted sums r, [B]; NaN where no reward applies.

    GRPO (Shao et al. 2024, arXiv:2402.03300). The standard deviation is that of the group, or of the batch (arXiv:2508.08221);
    Dr. GRPO (arXiv:2503.20783) does not divide.
    """
    sums = weighted_sums(rewards, weights)
    centred = groups.centred(sums)
    if scale == "none":
        return centred
    deviations = groups.deviations(centred) if scale == "group" else _deviation(sums)
    return centred / (deviations + EPSILON)


def normalised_sums(rewards: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """Return the weighted sum of each reward's own (r - mean) / (std + 1e-4) within its group, [B]; NaN where none applies."""
    normalised = [centred / (groups.deviations(centred) + EPSILON) for centred in map(groups.centred, rewards.unbind(1))]
    return weighted_sums(torch.stack(normalised, 1), weights)


def normalize_then_sum(rewards: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """Return the weighted sum of rewards that are each normalised within their group, over its std in the batch + 1e-4, [B].

    GDPO (arXiv:2601.05242). The paper also takes off the mean over the batch, which is 0: every column sums to 0 in every group.
    """
    sums = normalised_sums(rewards, weights, groups)
    return sums / (_deviation(sums) + EPSILON)


def overlong_punishment(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """Return 0 for completions up to limit - buffer tokens, from there in a straight line to -1 at the limit, [B] float64.

    Soft overlong punishment (DAPO, Yu et al. 2025, arXiv:2503.14476), equation 13.
    """
    return -((lengths.double() - (limit - buffer)) / buffer).clamp(0, 1)


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviation of all values, repeated, [B] to [B]."""
    groups = Groups(torch.zeros_like(values, dtype=torch.int64), 1)
    return groups.deviations(groups.centred(values))
