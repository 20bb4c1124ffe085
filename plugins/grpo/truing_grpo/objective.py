"""The loss of a batch: what each token costs, which tokens count how much, and how that is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from torch import Tensor

from truing import LossInputs, LossOutput, Needs, Term
from truing_grpo.loss_types import CLIPPED
from truing_grpo.normalisers import NORMALISERS
from truing_grpo.ratios import Samples, on_policy
from truing_grpo.regularisers import high_entropy, kl
from truing_grpo.surrogates import SURROGATES, vespo_weights

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO


def objective(inputs: LossInputs, method: GRPO) -> LossOutput:
    """Return the terms and the metrics of a batch.

    Masks and the sampler's correction multiply what a token costs by the surrogate; the KL divergence is of all tokens.
    """
    samples = Samples.of(inputs, method)
    costs, metrics = SURROGATES[method.loss_type](samples, method), ratio_metrics(samples, method)
    if samples.correction is not None:
        metrics |= method.correction_metrics(inputs, samples.correction)
        costs = costs if method.loss_type == "vespo" else costs * samples.correction
    if method.off_policy_mask_threshold is not None:
        kept = on_policy(samples, method.off_policy_mask_threshold).to(costs.dtype)
        costs = costs * kept
        metrics["off_policy_mask_ratio"] = Term(1 - inputs.mean(kept), per="sequence")
    forking = None
    if method.top_entropy_quantile < 1:
        forking = high_entropy(inputs, method.top_entropy_quantile).to(costs.dtype)
        costs = costs * forking
    if method.beta:
        divergences = kl(samples, method)
        costs = costs + method.beta * divergences
        metrics["kl"] = Term(divergences.detach(), per="token")
    terms = [NORMALISERS[method.loss_type](inputs, costs)]
    if Needs.ENTROPY in method.needs:
        assert inputs.token_entropy is not None
        metrics["entropy"] = Term(inputs.token_entropy.detach(), per="token")
    if method.entropy_coef:
        metrics["policy_loss"] = attrs.evolve(terms[0], values=terms[0].values.detach())
        terms.append(entropy_bonus(inputs, forking, method.entropy_coef))
    return LossOutput([_of_kept(inputs, term) for term in terms], {name: _of_kept(inputs, term) for name, term in metrics.items()})


def entropy_bonus(inputs: LossInputs, forking: Tensor | None, coefficient: float) -> Term:
    """Return -coefficient times the mean entropy of a token; of one that top_entropy_quantile leaves in, where it is set."""
    assert inputs.token_entropy is not None
    if forking is None:
        return Term(inputs.token_entropy, per="token", weight=-coefficient)
    return Term(inputs.token_entropy * forking / _share(inputs, forking), per="token", weight=-coefficient)


def ratio_metrics(samples: Samples, method: GRPO) -> dict[str, Term]:
    """Return how many ratios are clipped, or what vespo weighs completions: a share of tokens, or of completions by level."""
    ratios, advantages = samples.ratios.detach(), samples.advantages
    if method.loss_type in CLIPPED:
        low = (ratios < 1 - method.epsilon) & (advantages < 0)
        high = (ratios > 1 + method.high) & (advantages > 0)
        flags = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}
    elif method.loss_type == "cispo":
        flags = {"cispo_clip_ratio": (ratios > method.high) & (advantages > 0)}
    elif method.loss_type == "vespo":
        return {"vespo/phi_seq_mean": Term(vespo_weights(samples, method), per="sequence")}
    else:
        return {}
    return {name: _per_level(samples.inputs, flag.to(ratios.dtype), method.level) for name, flag in flags.items()}


def _per_level(inputs: LossInputs, values: Tensor, level: str) -> Term:
    """Return the mean of [T] values that are the same for all tokens of a completion, if that is the level."""
    return Term(inputs.mean(values), per="sequence") if level == "sequence" else Term(values, per="token")


def _share(inputs: LossInputs, chosen: Tensor) -> Tensor:
    """Return the share of the tokens that are chosen, a scalar."""
    return chosen.sum().clamp(min=1) / inputs.expand(inputs.kept).sum()


def _of_kept(inputs: LossInputs, term: Term) -> Term:
    """Return the term without what is of completions that are not kept."""
    kept = inputs.kept if term.per == "sequence" else inputs.expand(inputs.kept)
    return attrs.evolve(term, values=term.values.where(kept, 0.0))
