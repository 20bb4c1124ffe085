"""Prompt trees as JSON and tensors: what a checkpoint keeps of completions that were sampled, and of a step that was left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from truing.data.tree import Branch, PromptTree, Sampled

_COLUMN = "column."
"""Before the name of a column of sampled completions, which all of them have or none."""


def tree_numbers(trees: Sequence[PromptTree]) -> list[dict[str, Any]]:
    """Return what is JSON of each tree; the columns that rows of the dataset have are left out."""
    return [_numbers(tree) for tree in trees]


def tree_tensors(trees: Sequence[PromptTree]) -> dict[str, Tensor]:
    """Return the tokens, masks and columns of all trees, one after the other."""
    segments = [segment for tree in trees for segment in ((tree.prompt_ids, _prompt_mask(tree)), *_branches(tree))]
    tensors = {
        "token_ids": torch.tensor(list(itertools.chain.from_iterable(ids for ids, _ in segments)), dtype=torch.int32),
        "masks": torch.tensor(list(itertools.chain.from_iterable(mask for _, mask in segments)), dtype=torch.bool),
    }
    known = [branch.sampled for tree in trees for branch in tree.branches if branch.sampled is not None]
    for name in known[0].columns if known else ():
        tensors[f"{_COLUMN}{name}"] = torch.cat([sampled.columns[name] for sampled in known])
    return tensors


def stored_trees(numbers: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[PromptTree]:
    """Return the trees of these numbers and tensors. Raises KeyError, TypeError, ValueError or RuntimeError for anything else."""
    sizes = [size for tree in numbers for size in (tree["prompt_ids"], *(branch["token_ids"] for branch in tree["branches"]))]
    ids, masks = (iter(torch.split(tensors[name], sizes)) for name in ("token_ids", "masks"))
    columns = {name.removeprefix(_COLUMN): tensor for name, tensor in tensors.items() if name.startswith(_COLUMN)}
    used = 0

    def branch(values: Mapping[str, Any]) -> Branch:
        nonlocal used
        token_ids, mask = tuple(next(ids).tolist()), tuple(next(masks).tolist())
        sampled = values["sampled"]
        if sampled is not None:
            counted = sum(mask)
            own = {name: column[used : used + counted] for name, column in columns.items()}
            sampled = Sampled(**{**sampled, "rewards": tuple(sampled["rewards"])}, columns=own)
            used += counted
        return Branch(**{**values, "token_ids": token_ids, "loss_mask": mask, "sampled": sampled})

    trees = []
    for tree in numbers:
        prompt_ids, prompt_mask = tuple(next(ids).tolist()), tuple(next(masks).tolist())
        trees.append(
            PromptTree(
                prompt_ids=prompt_ids,
                prompt_mask=prompt_mask if any(prompt_mask) else (),
                branches=tuple(map(branch, tree["branches"])),
                sample_id=tree["sample_id"],
                margin=tree["margin"],
            )
        )
    return trees


def _numbers(tree: PromptTree) -> dict[str, Any]:
    return {
        "sample_id": tree.sample_id,
        "margin": tree.margin,
        "prompt_ids": len(tree.prompt_ids),
        "branches": [_branch_numbers(branch) for branch in tree.branches],
    }


def _branch_numbers(branch: Branch) -> dict[str, Any]:
    sampled = branch.sampled
    return {
        "token_ids": len(branch.token_ids),
        **{name: getattr(branch, name) for name in ("role", "label", "rank")},
        "sampled": None if sampled is None else attrs.asdict(sampled, filter=attrs.filters.exclude("columns")),
    }


def _prompt_mask(tree: PromptTree) -> Sequence[bool]:
    return tree.prompt_mask or (False,) * len(tree.prompt_ids)


def _branches(tree: PromptTree) -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
    return ((branch.token_ids, branch.loss_mask) for branch in tree.branches)
