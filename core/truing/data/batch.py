"""A micro-batch: prompt trees laid out for one forward, and what is predicted from where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from truing.data.layouts import Forward, place, predictions
from truing.data.row import RowLayout
from truing.data.tree import MISMATCHED, PromptTree, Sampled


@attrs.frozen(eq=False, kw_only=True)
class TreeBatch:
    """A micro-batch: B branches of some prompt trees, T counted completion tokens, Q counted prompt tokens.

    Mismatched branches are computed beside them and in neither B nor T; their M counted tokens have fields of their own.
    A predictor is the flat position in the model's output whose distribution is over the token. The last token of a branch is an
    input only where a head reads it: nothing is predicted from it.
    """

    trees: tuple[PromptTree, ...]
    forward: Forward
    """What it is laid out for."""
    model_inputs: Mapping[str, Any]
    """What the model is called with, or its two passes are."""
    later_inputs: Mapping[str, Any] | None
    """What it is called with after that for mismatched branches; None where they are in the first call, or there are none."""
    predictors: Tensor
    """[T] int64."""
    targets: Tensor
    """[T] int64, the token ids."""
    sequence_ids: Tensor
    """[T] int64."""
    tree_ids: Tensor
    """[B] int64."""
    lengths: Tensor
    """[B] int64."""
    prompt_predictors: Tensor
    """[Q] int64."""
    prompt_targets: Tensor
    """[Q] int64."""
    prompt_tree_ids: Tensor
    """[Q] int64."""
    mismatched_predictors: Tensor
    """[M] int64."""
    mismatched_targets: Tensor
    """[M] int64."""
    mismatched_sequence_ids: Tensor
    """[M] int64, the branch whose prompt the token's completion follows."""
    labels: Tensor | None
    """[B] bool, where every branch has one."""
    ranks: Tensor | None
    """[B] int64, where every branch has one."""
    margins: Tensor | None
    """[B] float, where any tree has one; 0 for one that has none."""
    ends: Tensor | None
    """[B] int64, the flat position of each branch's last token, where that is an input."""
    columns: Mapping[str, Tensor]
    """[T] each: what is known of sampled completions' counted tokens."""
    rewards: Tensor | None
    """[B, R] of sampled completions."""
    truncated: Tensor | None
    """[B] bool, of sampled completions."""
    advantages: Tensor | None
    """[B] of sampled completions, where the method gives each one number."""
    slots: int
    """Positions that the forward computes, padding included."""
    num_inputs: int
    """Positions that the forward computes, padding left out."""
    num_unshared: int
    """What num_inputs would be with a prompt computed for each of its branches."""

    def parts(self, most_tokens: int) -> Iterator[BatchPart]:
        """Yield consecutive trees with at most `most_tokens` counted tokens together; a tree with more is a part of its own."""
        counted, in_prompt = [tree.counted for tree in self.trees], [tree.counted_in_prompt for tree in self.trees]
        branches, mismatched = [len(tree.completions) for tree in self.trees], [tree.counted_mismatched for tree in self.trees]
        first = 0
        while first < len(self.trees):
            stop = first + 1
            while stop < len(self.trees) and sum(counted[first : stop + 1]) + sum(in_prompt[first : stop + 1]) <= most_tokens:
                stop += 1
            sizes = (counted, in_prompt, branches, mismatched)
            yield self._part(slice(first, stop), *(slice(sum(of_tree[:first]), sum(of_tree[:stop])) for of_tree in sizes))
            first = stop

    def whole(self) -> BatchPart:
        """Return the batch as its only part."""
        sizes = (len(self.targets), len(self.prompt_targets), len(self.lengths), len(self.mismatched_targets))
        return BatchPart(self, *(slice(0, size) for size in sizes))

    def _part(self, trees: slice, tokens: slice, prompt_tokens: slice, branches: slice, mismatched: slice) -> BatchPart:
        part = attrs.evolve(
            self,
            trees=self.trees[trees],
            predictors=self.predictors[tokens],
            targets=self.targets[tokens],
            sequence_ids=self.sequence_ids[tokens] - branches.start,
            tree_ids=self.tree_ids[branches] - trees.start,
            lengths=self.lengths[branches],
            prompt_predictors=self.prompt_predictors[prompt_tokens],
            prompt_targets=self.prompt_targets[prompt_tokens],
            prompt_tree_ids=self.prompt_tree_ids[prompt_tokens] - trees.start,
            mismatched_predictors=self.mismatched_predictors[mismatched],
            mismatched_targets=self.mismatched_targets[mismatched],
            mismatched_sequence_ids=self.mismatched_sequence_ids[mismatched] - branches.start,
            labels=None if self.labels is None else self.labels[branches],
            ranks=None if self.ranks is None else self.ranks[branches],
            margins=None if self.margins is None else self.margins[branches],
            ends=None if self.ends is None else self.ends[branches],
            columns={name: column[tokens] for name, column in self.columns.items()},
            rewards=None if self.rewards is None else self.rewards[branches],
            truncated=None if self.truncated is None else self.truncated[branches],
            advantages=None if self.advantages is None else self.advantages[branches],
        )
        return BatchPart(part, tokens, prompt_tokens, branches, mismatched)

    def to(self, device: torch.device) -> TreeBatch:
        """Return the batch with every tensor on the device."""
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in attrs.fields(TreeBatch)
            if isinstance(getattr(self, field.name), Tensor)
        }
        later = None if self.later_inputs is None else _moved(self.later_inputs, device)
        moved |= {"model_inputs": _moved(self.model_inputs, device), "columns": _moved(self.columns, device)}
        return attrs.evolve(self, later_inputs=later, **moved)


def _moved(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    moved = {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    return moved | {key: value.to(device) for key, value in moved.items() if isinstance(value, RowLayout)}


@attrs.frozen(eq=False)
class BatchPart:
    """Some trees of a batch, as a batch whose predictors still are positions in the whole one's output."""

    batch: TreeBatch
    tokens: slice
    """Which of the whole batch's T tokens these are."""
    prompt_tokens: slice
    """Which of its Q."""
    branches: slice
    """Which of its B."""
    mismatched: slice
    """Which of its M."""


def collate(trees: Sequence[PromptTree], forward: Forward, *, with_ends: bool = False) -> TreeBatch:
    """Lay trees out for a forward; `with_ends` makes the last token of every branch an input too.

    Raises ValueError for a tree without a prompt token, for nothing would predict its first token, and for an empty branch.
    """
    for tree in trees:
        if not tree.prompt_ids:
            raise ValueError(f"sample {tree.sample_id} has no prompt token; at least one must precede a completion")
        if not all(branch.token_ids for branch in tree.branches):
            raise ValueError(
                f"sample {tree.sample_id} has a branch without a token; drop it, or raise trainer.max_length, to which it was cut"
            )
    unread = None if with_ends else -1
    inputs = [[branch.token_ids[:unread] for branch in tree.branches] for tree in trees]
    placement = place(trees, inputs, forward)
    in_prompts, in_branches = sum(len(tree.prompt_ids) for tree in trees), sum(len(row) for rows in inputs for row in rows)
    unshared = sum(len(tree.prompt_ids) * len(tree.branches) for tree in trees) + in_branches
    ends = [
        start + len(branch.token_ids) - 1
        for start, branch in zip(placement.branch_starts, (branch for tree in trees for branch in tree.branches), strict=True)
        if branch.role != MISMATCHED
    ]
    learned = [branch for tree in trees for branch in tree.completions]
    predicted: dict[str, Any] = predictions(trees, placement)
    return TreeBatch(
        trees=tuple(trees),
        forward=forward,
        model_inputs=placement.model_inputs,
        later_inputs=placement.later_inputs,
        slots=placement.slots,
        num_inputs=unshared if forward == "padded" else in_prompts + in_branches,
        num_unshared=unshared,
        labels=_column([branch.label for branch in learned], torch.bool),
        ranks=_column([branch.rank for branch in learned], torch.int64),
        margins=_margins(trees),
        ends=torch.tensor(ends) if with_ends else None,
        **_of_sampled([branch.sampled for branch in learned]),
        **predicted,
    )


def joined_columns(sampled: Sequence[Sampled]) -> dict[str, Tensor]:
    """Return the columns that all completions have, [T] each; a backend may know the log-probabilities of some only."""
    shared = [name for name in sampled[0].columns if all(name in one.columns for one in sampled)]
    return {name: torch.cat([one.columns[name] for one in sampled]) for name in shared}


def _of_sampled(known: Sequence[Sampled | None]) -> dict[str, Any]:
    """Return the fields of a batch that say what is known of sampled completions; all of them are, or none."""
    sampled = [one for one in known if one is not None]
    if not sampled:
        return {"columns": {}, "rewards": None, "truncated": None, "advantages": None}
    return {
        "columns": joined_columns(sampled),
        "rewards": torch.tensor([one.rewards for one in sampled], dtype=torch.float32),
        "truncated": torch.tensor([one.truncated for one in sampled]),
        "advantages": _column([one.advantage for one in sampled], torch.float32),
    }


def _column(values: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    return None if any(value is None for value in values) else torch.tensor(values, dtype=dtype)


def _margins(trees: Sequence[PromptTree]) -> Tensor | None:
    if all(tree.margin is None for tree in trees):
        return None
    return torch.tensor([tree.margin or 0.0 for tree in trees for _ in tree.completions])
