"""Where the tokens of prompt trees lie among a model's inputs: in one row, in two passes over a cache, or in padded rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from truing.data.row import LaterRow, RowLayout, Span, TreeSpan
from truing.data.tree import MISMATCHED, PromptTree, TokenIds

Forward = Literal["shared_prefix", "cached", "padded"]
LAYOUT_ARGUMENT = "truing_layout"
"""The keyword under which a row's layout travels through the model call to the attention function."""


@attrs.frozen(eq=False)
class Placement:
    """What a model is called with, and where the tokens are in its output, flattened."""

    model_inputs: Mapping[str, Any]
    prompt_starts: Sequence[int]
    """[B] where the prompt of each branch begins."""
    branch_starts: Sequence[int]
    """[B] where each branch begins."""
    slots: int
    """Positions computed, padding included."""
    later_inputs: Mapping[str, Any] | None = None
    """What it is called with after that for mismatched branches, whose positions follow the others'; None where it was told all."""


Inputs = Sequence[Sequence[TokenIds]]
"""Of each tree and branch, the tokens that are inputs."""


def place(trees: Sequence[PromptTree], inputs: Inputs, forward: Forward) -> Placement:
    """Lay out trees whose branches have these inputs."""
    return _PLACES[forward](trees, inputs)


@attrs.define
class _Row:
    """A row in the making: ids and positions."""

    ids: list[int] = attrs.field(factory=list)
    positions: list[int] = attrs.field(factory=list)

    def add(self, ids: TokenIds, first_position: int) -> Span:
        """Append tokens and return where they lie."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions.extend(range(first_position, first_position + len(ids)))
        return start, len(self.ids)

    def model_inputs(self, layout: RowLayout | LaterRow) -> dict[str, Any]:
        """Return what the model is called with."""
        return {
            "input_ids": _int64(self.ids).unsqueeze(0),
            "position_ids": _int64(self.positions).unsqueeze(0),
            # a mask of four dimensions is handed through by transformers as it is, so that it builds none of its own; the
            # attention function reads the layout instead
            "attention_mask": torch.zeros(1, 1, 1, 1),
            LAYOUT_ARGUMENT: layout,
        }


def _shared_prefix(trees: Sequence[PromptTree], inputs: Inputs) -> Placement:
    """Mismatched branches, of which no gradient is taken, are a row of their own, so that the backward does not run over them."""
    row, later = _Row(), _Row()
    spans: list[TreeSpan] = []
    later_spans: list[TreeSpan] = []
    for tree, branches in zip(trees, inputs, strict=True):
        length = len(tree.prompt_ids)
        prompt = row.add(tree.prompt_ids, 0)
        pairs = list(zip(tree.branches, branches, strict=True))
        spans.append(TreeSpan(prompt, tuple(row.add(ids, length) for branch, ids in pairs if branch.role != MISMATCHED)))
        of_others = tuple(later.add(ids, length) for branch, ids in pairs if branch.role == MISMATCHED)
        if of_others:
            later_spans.append(TreeSpan(prompt, of_others))
    prompt_starts = [span.prompt[0] for span, tree in zip(spans, trees, strict=True) for _ in tree.branches]
    starts, later_starts = (iter([start for span in some for start, _ in span.branches]) for some in (spans, later_spans))
    branch_starts = [
        next(starts) if branch.role != MISMATCHED else len(row.ids) + next(later_starts)
        for tree in trees
        for branch in tree.branches
    ]
    return Placement(
        row.model_inputs(RowLayout(tuple(spans))),
        prompt_starts,
        branch_starts,
        len(row.ids) + len(later.ids),
        later.model_inputs(LaterRow(tuple(later_spans))) if later.ids else None,
    )


def _cached(trees: Sequence[PromptTree], inputs: Inputs) -> Placement:
    """Prompts are padded on the left and branches on the right, so that a branch lies directly behind its prompt in the cache.

    Distances between slots are distances between tokens then, and some models (ALiBi, sliding windows) go by slots.
    """
    prompt_ids, prompt_mask = _pad([tree.prompt_ids for tree in trees], left=True)
    branch_ids, branch_mask = _pad([branch for branches in inputs for branch in branches])
    tree_of = [index for index, branches in enumerate(inputs) for _ in branches]
    width, branch_width = prompt_ids.shape[1], branch_ids.shape[1]
    model_inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "branch_ids": branch_ids,
        "branch_mask": branch_mask,
        "tree_of": torch.tensor(tree_of),
    }
    prompt_starts = [(index + 1) * width - len(trees[index].prompt_ids) for index in tree_of]
    branch_starts = [prompt_ids.numel() + row * branch_width for row in range(len(tree_of))]
    return Placement(model_inputs, prompt_starts, branch_starts, prompt_ids.numel() + branch_ids.numel())


def _padded(trees: Sequence[PromptTree], inputs: Inputs) -> Placement:
    rows = [tree.prompt_ids + branch for tree, branches in zip(trees, inputs, strict=True) for branch in branches]
    prompts = [len(tree.prompt_ids) for tree, branches in zip(trees, inputs, strict=True) for _ in branches]
    ids, mask = _pad(rows)
    positions = torch.arange(ids.shape[1]).expand(*ids.shape).contiguous()
    starts = [row * ids.shape[1] for row in range(len(rows))]
    branch_starts = [start + length for start, length in zip(starts, prompts, strict=True)]
    model_inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    return Placement(model_inputs, starts, branch_starts, ids.numel())


_PLACES: Mapping[Forward, Callable[[Sequence[PromptTree], Inputs], Placement]] = {
    "shared_prefix": _shared_prefix,
    "cached": _cached,
    "padded": _padded,
}


def _pad(rows: Sequence[TokenIds], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return ids and mask, [rows, longest] int64."""
    width = max(map(len, rows))
    fills = [(0,) * (width - len(row)) for row in rows]
    ids = [fill + row if left else row + fill for row, fill in zip(rows, fills, strict=True)]
    mask = [fill + (1,) * len(row) if left else (1,) * len(row) + fill for row, fill in zip(rows, fills, strict=True)]
    shape = (len(rows), width)
    return torch.tensor(ids, dtype=torch.int64).reshape(shape), torch.tensor(mask, dtype=torch.int64).reshape(shape)


def predictions(trees: Sequence[PromptTree], placement: Placement) -> dict[str, Tensor]:
    """Return the fields of a TreeBatch that say what is predicted from where."""
    branches = [branch for tree in trees for branch in tree.branches]
    tree_ids = torch.tensor([index for index, tree in enumerate(trees) for _ in tree.branches])
    firsts = list(itertools.accumulate((len(tree.branches) for tree in trees[:-1]), initial=0))
    prompt_starts, branch_starts = torch.tensor(placement.prompt_starts), torch.tensor(placement.branch_starts)
    last_of_prompt = prompt_starts + torch.tensor([len(tree.prompt_ids) for tree in trees])[tree_ids] - 1
    in_branches = _Counted.of([branch.token_ids for branch in branches], [branch.loss_mask for branch in branches])
    # nothing precedes, and so predicts, the first token of a prompt
    masks = [(False, *tree.prompt_mask[1:]) if tree.prompt_mask else (False,) * len(tree.prompt_ids) for tree in trees]
    in_prompts = _Counted.of([tree.prompt_ids for tree in trees], masks)
    before = branch_starts[in_branches.rows] + in_branches.places - 1
    predictors = torch.where(in_branches.places == 0, last_of_prompt[in_branches.rows], before)
    learned = torch.tensor([branch.role != MISMATCHED for branch in branches])
    own = learned[in_branches.rows]
    # a mismatched branch has no number of its own, and here that of the branch before it
    sequence_ids = (learned.cumsum(0) - 1)[in_branches.rows]
    return {
        "predictors": predictors[own],
        "targets": in_branches.ids[own],
        "sequence_ids": sequence_ids[own],
        "tree_ids": tree_ids[learned],
        "lengths": torch.tensor([branch.counted for branch in branches])[learned],
        "mismatched_predictors": predictors[~own],
        "mismatched_targets": in_branches.ids[~own],
        "mismatched_sequence_ids": sequence_ids[~own],
        "prompt_predictors": prompt_starts[torch.tensor(firsts)][in_prompts.rows] + in_prompts.places - 1,
        "prompt_targets": in_prompts.ids,
        "prompt_tree_ids": in_prompts.rows,
    }


@attrs.frozen(eq=False)
class _Counted:
    """The counted tokens of some rows, one after the other: their ids, their rows and their places in these, int64."""

    ids: Tensor
    rows: Tensor
    places: Tensor

    @classmethod
    def of(cls, ids: Sequence[TokenIds], masks: Sequence[tuple[bool, ...]]) -> _Counted:
        counted = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(masks), np.bool_))
        lengths = torch.tensor([len(row) for row in ids])
        rows = torch.from_numpy(np.repeat(np.arange(len(ids)), lengths))  # torch's own wakes its threads for so little
        places = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
        flat = _int64(itertools.chain.from_iterable(ids))
        return cls(flat[counted], rows[counted], places[counted])


def _int64(numbers: Iterable[int]) -> Tensor:
    """Return [N]; PyTorch's own way takes four times as long."""
    return torch.from_numpy(np.fromiter(numbers, np.int64))
