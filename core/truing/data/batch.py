"""Prompt trees laid out for one forward: as one row with shared prompts, or padded with a row per branch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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


@attrs.frozen
class RowLayout:
    """The trees of one row, in order; every position belongs to exactly one prompt or branch."""

    trees: tuple[TreeSpan, ...]

    @property
    def sizes(self) -> list[int]:
        """How many positions each prompt and each branch has, in the order of the row."""
        return [stop - start for tree in self.trees for start, stop in (tree.prompt, *tree.branches)]


@attrs.frozen(eq=False, kw_only=True)
class TreeBatch:
    """A micro-batch: B branches of some prompt trees, T counted completion tokens, Q counted prompt tokens.

    A predictor is the flat position in the model's output whose distribution is over the token. The last token of a branch is no
    input: nothing is predicted from it.
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
    num_inputs: int
    """Positions that the forward computes, padding left out."""

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


def collate(trees: Sequence[PromptTree], forward: Forward) -> TreeBatch:
    """Lay trees out for a forward. Raises ValueError for a tree without a prompt token: nothing would predict its first token."""
    for tree in trees:
        if not tree.prompt_ids:
            raise ValueError(f"sample {tree.sample_id} has no prompt token; at least one must precede a completion")
    inputs, position_of = _shared_prefix(trees) if forward == "shared_prefix" else _padded(trees)
    real = inputs["input_ids"].numel() if forward == "shared_prefix" else int(inputs["attention_mask"].sum())
    return TreeBatch(trees=tuple(trees), model_inputs=inputs, num_inputs=real, **_predictions(trees, position_of))


PositionOf = Callable[[int, int, int], int]
"""(tree, branch, index in prompt + branch) -> flat position of that token among the model's inputs."""


def _shared_prefix(trees: Sequence[PromptTree]) -> tuple[dict[str, Any], PositionOf]:
    ids: list[int] = []
    positions: list[int] = []
    spans: list[TreeSpan] = []
    for tree in trees:
        prompt_length = len(tree.prompt_ids)
        prompt = (len(ids), len(ids) + prompt_length)
        ids.extend(tree.prompt_ids)
        positions.extend(range(prompt_length))
        branches = []
        for branch in tree.branches:
            inputs = branch.token_ids[:-1]
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


def _padded(trees: Sequence[PromptTree]) -> tuple[dict[str, Any], PositionOf]:
    rows = [tree.prompt_ids + branch.token_ids[:-1] for tree in trees for branch in tree.branches]
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
