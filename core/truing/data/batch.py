"""Prompt trees laid out for one forward: as one row with shared prompts, or padded with a row per branch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from truing.data.tree import PromptTree

Forward = Literal["shared_prefix", "padded"]
LAYOUT_ARGUMENT = "truing_layout"
"""The keyword under which a row's layout travels through the model call to the attention function."""


@attrs.frozen
class TreeSpan:
    """Where a tree lies in its row: half-open ranges of positions, of the prompt and of each branch's inputs."""

    prompt: tuple[int, int]
    branches: tuple[tuple[int, int], ...]

    @property
    def stop(self) -> int:
        """Where the tree ends."""
        return self.branches[-1][1] if self.branches else self.prompt[1]

    @property
    def reach(self) -> int:
        """Positions that its longest branch attends to, its prompt among them."""
        start, stop = self.prompt
        return stop - start + max((end - begin for begin, end in self.branches), default=0)


@attrs.frozen
class RowLayout:
    """The trees of one row, in order; every position belongs to exactly one prompt or branch."""

    trees: tuple[TreeSpan, ...]

    @property
    def sizes(self) -> list[int]:
        """How many positions each prompt and each branch has, in the order of the row."""
        return [stop - start for tree in self.trees for start, stop in (tree.prompt, *tree.branches)]

    @property
    def reach(self) -> int:
        """Positions that the longest branch of all attends to."""
        return max(tree.reach for tree in self.trees)


@attrs.frozen(eq=False, kw_only=True)
class TreeBatch:
    """A micro-batch: B branches of some prompt trees, T counted completion tokens, Q counted prompt tokens.

    A predictor is the flat position in the model's output whose distribution is over the token. The last token of a branch is an
    input only where a head reads it: nothing is predicted from it.
    """

    trees: tuple[PromptTree, ...]
    model_inputs: Mapping[str, Any]
    """What the model is called with: input_ids and position_ids, and a layout or an attention mask."""
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
    ends: Tensor | None
    """[B] int64, the flat position of each branch's last token, where that is an input."""
    num_inputs: int
    """Positions that the forward computes, padding left out."""
    num_unshared: int
    """What num_inputs would be with a prompt computed for each of its branches."""

    def parts(self, most_tokens: int) -> Iterator[BatchPart]:
        """Yield consecutive trees with at most `most_tokens` counted tokens together; a tree with more is a part of its own."""
        counted = [sum(branch.counted for branch in tree.branches) for tree in self.trees]
        in_prompt = [sum(tree.prompt_mask[1:]) for tree in self.trees]
        branches = [len(tree.branches) for tree in self.trees]
        first = 0
        while first < len(self.trees):
            stop = first + 1
            while stop < len(self.trees) and sum(counted[first : stop + 1]) + sum(in_prompt[first : stop + 1]) <= most_tokens:
                stop += 1
            tokens, prompt_tokens, rows = (slice(sum(sizes[:first]), sum(sizes[:stop])) for sizes in (counted, in_prompt, branches))
            yield self._part(slice(first, stop), tokens, prompt_tokens, rows)
            first = stop

    def whole(self) -> BatchPart:
        """Return the batch as its only part."""
        return BatchPart(self, slice(0, len(self.targets)), slice(0, len(self.prompt_targets)), slice(0, len(self.lengths)))

    def _part(self, trees: slice, tokens: slice, prompt_tokens: slice, branches: slice) -> BatchPart:
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
            ends=None if self.ends is None else self.ends[branches],
        )
        return BatchPart(part, tokens, prompt_tokens, branches)

    @property
    def slots(self) -> int:
        """Positions that the forward computes, padding included."""
        return int(self.model_inputs["input_ids"].numel())

    def to(self, device: torch.device) -> TreeBatch:
        """Return the batch with every tensor on the device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in attrs.fields(TreeBatch)
            if isinstance(getattr(self, field.name), Tensor)
        }
        inputs = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in self.model_inputs.items()
        }
        return attrs.evolve(self, model_inputs=inputs, **moved)


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


def collate(trees: Sequence[PromptTree], forward: Forward, *, with_ends: bool = False) -> TreeBatch:
    """Lay trees out for a forward; `with_ends` makes the last token of every branch an input too.

    Raises ValueError for a tree without a prompt token, for nothing would predict its first token, and for an empty branch.
    """
    for tree in trees:
        if not tree.prompt_ids:
            raise ValueError(f"sample {tree.sample_id} has no prompt token; at least one must precede a completion")
        if not all(branch.token_ids for branch in tree.branches):
            raise ValueError(f"sample {tree.sample_id} has a branch without a token; drop it, or lower what it was cut to")
    unread = None if with_ends else -1
    rows = [tuple(branch.token_ids[:unread] for branch in tree.branches) for tree in trees]
    inputs, position_of = _shared_prefix(trees, rows) if forward == "shared_prefix" else _padded(trees, rows)
    real = inputs["input_ids"].numel() if forward == "shared_prefix" else int(inputs["attention_mask"].sum())
    ends = [
        position_of(t, b, len(tree.prompt_ids) + len(branch.token_ids) - 1)
        for t, tree in enumerate(trees)
        for b, branch in enumerate(tree.branches)
        if with_ends
    ]
    return TreeBatch(
        trees=tuple(trees),
        model_inputs=inputs,
        num_inputs=real,
        num_unshared=sum(len(tree.prompt_ids) + len(row) for tree, branches in zip(trees, rows, strict=True) for row in branches),
        ends=torch.tensor(ends) if with_ends else None,
        **_predictions(trees, position_of),
    )


PositionOf = Callable[[int, int, int], int]
"""(tree, branch, index in prompt + branch) -> flat position of that token among the model's inputs."""


Inputs = tuple[tuple[int, ...], ...]
"""What of each branch of a tree is an input."""


def _shared_prefix(trees: Sequence[PromptTree], rows: Sequence[Inputs]) -> tuple[dict[str, Any], PositionOf]:
    ids: list[int] = []
    positions: list[int] = []
    spans: list[TreeSpan] = []
    for tree, inputs_of_branches in zip(trees, rows, strict=True):
        prompt_length = len(tree.prompt_ids)
        prompt = (len(ids), len(ids) + prompt_length)
        ids.extend(tree.prompt_ids)
        positions.extend(range(prompt_length))
        branches = []
        for inputs in inputs_of_branches:
            branches.append((len(ids), len(ids) + len(inputs)))
            ids.extend(inputs)
            positions.extend(range(prompt_length, prompt_length + len(inputs)))
        spans.append(TreeSpan(prompt, tuple(branches)))

    def position_of(tree: int, branch: int, index: int) -> int:
        start, stop = spans[tree].prompt
        return start + index if start + index < stop else spans[tree].branches[branch][0] + index - (stop - start)

    model_inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        # a mask of four dimensions is handed through by transformers as it is, so that it builds none of its own; the
        # attention function reads the layout instead
        "attention_mask": torch.zeros(1, 1, 1, 1),
        LAYOUT_ARGUMENT: RowLayout(tuple(spans)),
    }
    return model_inputs, position_of


def _padded(trees: Sequence[PromptTree], inputs_of: Sequence[Inputs]) -> tuple[dict[str, Any], PositionOf]:
    rows = [tree.prompt_ids + branch for tree, branches in zip(trees, inputs_of, strict=True) for branch in branches]
    first_row = list(itertools.accumulate((len(tree.branches) for tree in trees), initial=0))
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + (0,) * (width - len(row)) for row in rows]),
        "position_ids": torch.arange(width).expand(len(rows), width).contiguous(),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
    return inputs, lambda tree, branch, index: (first_row[tree] + branch) * width + index


def _predictions(trees: Sequence[PromptTree], position_of: PositionOf) -> dict[str, Tensor]:
    tokens: list[tuple[int, int, int]] = []  # predictor, target, branch
    prompt_tokens: list[tuple[int, int, int]] = []  # predictor, target, tree
    tree_ids: list[int] = []
    lengths: list[int] = []
    for t, tree in enumerate(trees):
        prompt_tokens += [
            (position_of(t, 0, i - 1), tree.prompt_ids[i], t) for i, counted in enumerate(tree.prompt_mask) if counted and i > 0
        ]
        for b, branch in enumerate(tree.branches):
            before = len(tree.prompt_ids) - 1
            tokens += [
                (position_of(t, b, before + i), branch.token_ids[i], len(tree_ids))
                for i, counted in enumerate(branch.loss_mask)
                if counted
            ]
            tree_ids.append(t)
            lengths.append(branch.counted)
    predictors, targets, sequence_ids = _columns(tokens)
    prompt_predictors, prompt_targets, prompt_tree_ids = _columns(prompt_tokens)
    return {
        "predictors": predictors,
        "targets": targets,
        "sequence_ids": sequence_ids,
        "tree_ids": torch.tensor(tree_ids),
        "lengths": torch.tensor(lengths),
        "prompt_predictors": prompt_predictors,
        "prompt_targets": prompt_targets,
        "prompt_tree_ids": prompt_tree_ids,
    }


def _columns(rows: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    return table[:, 0].contiguous(), table[:, 1].contiguous(), table[:, 2].contiguous()
