"""What is taken off rewards.

Equal rewards give exactly 0: a floating-point mean of equal numbers need not be that number, so both functions first take off the
least of what they compare, which leaves zeros.
"""

from __future__ import annotations

from math import inf

from torch import Tensor

EPSILON = 1e-4
"""Added to standard deviations."""


def leave_one_out(rewards: Tensor, tree_ids: Tensor, scored: Tensor) -> Tensor:
    """Return each branch's reward less the mean of the others of its prompt, [B]; 0 for the only one, and for one not scored.

    `scored` [B] says which branches have a reward; the others are in no mean.
    """
    groups = int(tree_ids.max()) + 1
    least = rewards.new_full((groups,), inf).scatter_reduce(0, tree_ids, rewards.where(scored, inf), "amin")
    above = (rewards - least[tree_ids]).where(scored, 0.0)
    sums = rewards.new_zeros(groups).index_add(0, tree_ids, above)[tree_ids]
    counts = rewards.new_zeros(groups).index_add(0, tree_ids, scored.to(rewards.dtype))[tree_ids]
    return (above - (sums - above) / (counts - 1).clamp(min=1)).where(scored, 0.0)


def normalised(values: Tensor, mask: Tensor) -> Tensor:
    """Return values, of any one shape, less their mean and divided by their standard deviation + 1e-4, over those in the mask.

    The standard deviation is unbiased. Values that are not in the mask become 0.
    """
    above = (values - values.where(mask, inf).amin()).where(mask, 0.0)
    count = mask.sum()
    centred = (above - above.sum() / count.clamp(min=1)).where(mask, 0.0)
    return centred / ((centred.square().sum() / (count - 1).clamp(min=1)).sqrt() + EPSILON)
