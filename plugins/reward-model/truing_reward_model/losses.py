"""The methods `reward-model` and `ranked-reward-model`: a score r of each completion, of which only differences matter.

Bradley and Terry (1952): the better of two completions is preferred with probability sigmoid(r_w - r_l).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term, setting

if TYPE_CHECKING:
    from torch import Tensor

_CENTRING = "Weight of the squared sum of a pair's scores, which keeps scores around 0 (arXiv:2312.09244); null is off."


@attrs.frozen(kw_only=True)
class RewardModelLoss(Loss):
    """Bradley-Terry on pairs: -log sigmoid(r_w - r_l - margin), a mean over the pairs of a step.

    Ouyang et al. 2022, arXiv:2203.02155; the margin, which the dataset gives with a pair, is Llama 2's, arXiv:2307.09288.
    """

    name: ClassVar[str] = "reward-model"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.SCORES | Needs.NO_LOGPS

    center_rewards_coefficient: float | None = setting(None, ge=0, help=_CENTRING)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return a term per pair, one more for centring; metrics as the README lists them."""
        assert inputs.scores is not None
        better, worse = inputs.chosen.branches(inputs.scores), inputs.rejected.branches(inputs.scores)
        margins = None if inputs.margins is None else inputs.chosen.branches(inputs.margins)
        terms = [Term(_cost(better, worse, margins), per="pair")]
        if self.center_rewards_coefficient is not None:
            terms.append(Term((better + worse).square(), per="pair", weight=self.center_rewards_coefficient))
        found = _statistics(better, worse)
        metrics = {name: Term(values, per="pair") for name, values in found.items()}
        return LossOutput(terms=terms, metrics={**metrics, "mean_reward": Term(inputs.scores.detach(), per="sequence")})


@attrs.frozen(kw_only=True)
class RankedRewardModel(Loss):
    """Bradley-Terry on all pairs of a prompt's ranked answers: -log sigmoid(r_i - r_j) where i ranks better than j.

    The mean over a prompt's pairs, then over prompts, so that each prompt weighs the same however many answers it has
    (Ouyang et al. 2022, arXiv:2203.02155). Answers of equal rank are no pair.
    """

    name: ClassVar[str] = "ranked-reward-model"
    layout: ClassVar[Layout] = Layout.RANKED
    needs: ClassVar[Needs] = Needs.SCORES | Needs.NO_LOGPS

    center_rewards_coefficient: float | None = setting(None, ge=0, help=_CENTRING)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return a term per prompt, one more for centring; metrics as the README lists them."""
        assert inputs.scores is not None and inputs.ranks is not None
        same = inputs.tree_ids.unsqueeze(1) == inputs.tree_ids  # [B, B]
        first, second = (same & (inputs.ranks.unsqueeze(1) < inputs.ranks)).nonzero(as_tuple=True)  # [all pairs]
        better, worse = inputs.scores[first], inputs.scores[second]
        trees = inputs.tree_ids[first]
        counts = trees.bincount(minlength=int(inputs.tree_ids.max()) + 1)  # [prompts]

        def means(values: Tensor) -> Tensor:
            return values.new_zeros(len(counts)).index_add(0, trees, values) / counts.clamp(min=1)

        terms = [Term(means(_cost(better, worse)), per="example")]
        if self.center_rewards_coefficient is not None:
            terms.append(Term(means((better + worse).square()), per="example", weight=self.center_rewards_coefficient))
        metrics = {name: Term(means(values), per="example") for name, values in _statistics(better, worse).items()}
        return LossOutput(terms=terms, metrics={**metrics, "mean_reward": Term(inputs.scores.detach(), per="sequence")})


def _cost(better: Tensor, worse: Tensor, margins: Tensor | None = None) -> Tensor:
    """Return -log sigmoid(r_w - r_l - margin) of each pair."""
    from torch.nn.functional import softplus

    ahead = better - worse if margins is None else better - worse - margins
    return softplus(-ahead)


def _statistics(better: Tensor, worse: Tensor) -> dict[str, Tensor]:
    """Return metrics of each pair, without gradient."""
    better, worse = better.detach(), worse.detach()
    return {
        "accuracy": (better > worse).to(better),
        "margin": better - worse,
        "rewards/chosen": better,
        "rewards/rejected": worse,
    }
