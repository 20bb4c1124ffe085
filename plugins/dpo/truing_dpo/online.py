"""The method `online-dpo`: pairs of the policy's own completions, by the rewards that they get."""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import attrs

from truing import Advantages, Layout, LossInputs, Needs, OnlineLoss, Term, setting
from truing_dpo.dpo import DPO

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-6
"""What a weighted sum may be off by, as a share of the size of its terms, in single precision."""
PairsOf: TypeAlias = Literal["best_worst", "all"]


@attrs.frozen(kw_only=True)
class OnlineDPO(DPO, OnlineLoss):
    """DPO on pairs of the policy's own completions, ranked by rewards or a judge (Guo et al. 2024, arXiv:2402.04792).

    Of the completions of a prompt the one with the greatest weighted reward is chosen and the one with the least rejected; with
    `pairs` all, every two of unequal reward are a pair. A prompt whose rewards are all equal, but for rounding, gives none. The
    rest is `dpo`, with any of its losses.
    """

    name: ClassVar[str] = "online-dpo"
    layout: ClassVar[Layout] = Layout.ROLLOUT
    trained_layout: ClassVar[Layout] = Layout.PAIRED
    least_generations: ClassVar[int] = 2
    default_num_generations: ClassVar[int] = 2

    pairs: PairsOf = setting(
        "best_worst", help="Which completions of a prompt are paired: best and worst, or all of unequal reward."
    )

    @property
    def rollout_needs(self) -> Needs:
        """Rewards alone."""
        return Needs.REWARDS | Needs.NO_LOGPS

    def advantages(self, rollouts: LossInputs) -> Advantages:
        """Return pairs, [P, 2]; the values, [B], say in how many pairs a branch is chosen, less those in which it is rejected."""
        import torch

        scores = rollouts.weighted_rewards.masked_fill(~rollouts.kept, nan)  # [B]
        best, worst = _extremes(scores, rollouts.tree_ids)
        if self.pairs == "all":
            same_tree = rollouts.tree_ids[:, None] == rollouts.tree_ids
            pairs = (same_tree & (scores[:, None] > scores)).nonzero()
        else:
            ends = [_first(scores == extreme[rollouts.tree_ids], rollouts.tree_ids, len(best)) for extreme in (best, worst)]
            pairs = torch.stack(ends, 1)[best > worst]
        pairs = pairs[_differ(rollouts, scores, *pairs.unbind(1))]
        unequal = torch.zeros_like(best, dtype=torch.bool).index_fill(0, rollouts.tree_ids[pairs[:, 0]], True)
        wins = scores.new_ones(len(pairs))
        return Advantages(
            values=scores.new_zeros(len(scores)).index_add(0, pairs[:, 0], wins).index_add(0, pairs[:, 1], -wins),
            pairs=pairs,
            metrics={
                "frac_tied_prompts": Term((~unequal).to(scores.dtype), per="example"),
                "objective/scores_margin": Term((best - worst).where(unequal, 0.0), per="example"),
            },
        )


def _extremes(scores: Tensor, tree_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest and the least score of each prompt; -inf and inf for one without any (NaN is none)."""
    trees = int(tree_ids.max()) + 1
    best = scores.new_full((trees,), -inf).scatter_reduce(0, tree_ids, scores.nan_to_num(-inf), "amax")
    return best, scores.new_full((trees,), inf).scatter_reduce(0, tree_ids, scores.nan_to_num(inf), "amin")


def _differ(rollouts: LossInputs, scores: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return of which pairs [P] the scores differ by more than rounding: the same reward may be summed of other terms."""
    assert rollouts.rewards is not None and rollouts.reward_weights is not None
    sizes = (rollouts.rewards * rollouts.reward_weights).abs().nansum(1)  # [B]
    return scores[chosen] - scores[rejected] > ROUNDING * sizes[chosen].maximum(sizes[rejected])


def _first(found: Tensor, tree_ids: Tensor, trees: int) -> Tensor:
    """Return the first branch of each prompt for which `found` [B] is True; B where there is none."""
    size = len(found)
    branches = tree_ids.new_ones(size).cumsum(0) - 1
    return tree_ids.new_full((trees,), size).scatter_reduce(0, tree_ids, branches.where(found, size), "amin")
