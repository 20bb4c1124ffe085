"""The reduction of Terms: the only place that averages over a batch.

Counts are taken over the whole optimiser step (all micro-batches, all ranks) before the first backward, so loss, gradients and
metrics are the same however the step is split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from truing.data.tree import PromptTree
from truing.loss import Layout, LossOutput, Per, Term


@attrs.frozen
class StepCounts:
    """How many of each thing an optimiser step has; the fields are the words that a Term's `per` may be, but for "constant"."""

    pair: float = 0.0
    example: float = 0.0
    sequence: float = 0.0
    token: float = 0.0
    chosen_token: float = 0.0
    desirable: float = 0.0
    undesirable: float = 0.0

    @classmethod
    def of(cls, micro_batches: Iterable[Sequence[PromptTree]], layout: Layout) -> StepCounts:
        """Count the trees of a step, those of all ranks, in any number of lots."""
        counts = dict.fromkeys((field.name for field in attrs.fields(cls)), 0)
        for trees in micro_batches:
            for tree in trees:
                in_prompt = tree.counted_in_prompt
                counts["example"] += 1
                counts["sequence"] += len(tree.completions)
                counts["token"] += in_prompt + tree.counted
                if layout is Layout.PAIRED:
                    counts["pair"] += 1
                    counts["chosen_token"] += in_prompt + tree.branches[0].counted
                if layout is Layout.LABELED:
                    counts["desirable"] += sum(branch.label is True for branch in tree.completions)
                    counts["undesirable"] += sum(branch.label is False for branch in tree.completions)
        return cls(**{key: float(count) for key, count in counts.items()})

    def has(self, per: Per) -> bool:
        """Whether the step has any of what a Term is counted per."""
        return per == "constant" or getattr(self, per) > 0


def reduce_term(term: Term, counts: StepCounts, examples: float | None = None) -> Tensor:
    """Return weight * sum(values) / count: the share that a call with `examples` prompts has in the step's value.

    None is all prompts of the step. Raises ValueError for a count of nothing.
    """
    if term.per == "constant":
        return term.weight * term.values.sum() * (1.0 if examples is None else examples / counts.example)
    count: float = getattr(counts, term.per)
    if count == 0:
        if term.values.numel() == 0:
            return term.values.sum()
        raise ValueError(f"a Term is per {term.per!r}, but this step has none; its layout may have no such thing")
    return term.weight * term.values.sum() / count


def reduce_output(output: LossOutput, counts: StepCounts, examples: float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a call with `examples` prompts adds to the step's loss, and to each metric (the loss among them), detached."""
    if not output.terms:
        raise ValueError("the loss returned no term; return at least one, with the values to minimise")
    loss = torch.stack([reduce_term(term, counts, examples) for term in output.terms]).sum()
    metrics = {
        name: torch.stack([reduce_term(term, counts, examples).detach() for term in terms]).sum()
        for name, terms in output.metric_terms.items()
        if all(counts.has(term.per) for term in terms)
    }
    return loss, {"loss": loss.detach(), **metrics}


def add_shares(total: dict[str, Tensor], share: Mapping[str, Tensor]) -> None:
    """Add one call's shares to the step's metrics, on the device."""
    for name, value in share.items():
        total[name] = total[name] + value if name in total else value
