"""All prompt trees of a run, packed into a few flat columns."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from truing.data.column import Column
from truing.data.example import Text
from truing.data.tokenizer import decode_after
from truing.data.tree import Branch, PromptTree
from truing.loss import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NONE = -1


def branch_roles(layout: Layout, count: int) -> tuple[str, ...]:
    """Return the role of each of a tree's `count` branches."""
    return ("chosen", "rejected") if layout is Layout.PAIRED else ("completion",) * count


class TreeDataset:
    """A sequence of prompt trees; `sample_id` is the index.

    A segment is a run of tokens: a tree's prompt, or one of its branches. Token ids and masks of all segments lie one after the
    other in two columns, 5 bytes a token, on disk where they are long; trees are built when they are asked for.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._tokens = Column("i")
        self._mask = Column("b")
        self._segments = Column("q", [0])
        """[segments + 1] where each segment begins among the tokens."""
        self._labels = Column("b")
        self._ranks = Column("i")
        self._trees = Column("q", [0])
        """[trees + 1] where each tree begins among the segments."""
        self._margins = Column("d")
        self._columns: list[Mapping[str, Any]] = []
        self._prompts: list[Text] = []
        self._texts: list[str] = []
        self._order: NDArray[np.int64] | None = None

    def append(self, tree: PromptTree, prompt: Text = "", text: str | None = None) -> None:
        """Add a tree at the end, with the prompt as the dataset has it, and as rendered if that is to be kept.

        The ROLLOUT layout alone keeps columns and prompts, for rewards.
        """
        self._add_segment(tree.prompt_ids, tree.prompt_mask or (False,) * len(tree.prompt_ids), None, None)
        for branch in tree.branches:
            self._add_segment(branch.token_ids, branch.loss_mask, branch.label, branch.rank)
        self._trees.append(len(self._segments) - 1)
        self._margins.append(float("nan") if tree.margin is None else tree.margin)
        if self.layout is Layout.ROLLOUT:
            self._columns.append(tree.columns)
            self._prompts.append(prompt)
        if text is not None:
            self._texts.append(text)

    def _add_segment(self, ids: Sequence[int], mask: Sequence[bool], label: bool | None, rank: int | None) -> None:
        self._tokens.extend(ids)
        self._mask.extend(mask)
        self._segments.append(len(self._tokens))
        self._labels.append(_NONE if label is None else label)
        self._ranks.append(_NONE if rank is None else rank)

    def select(self, indices: Sequence[int]) -> TreeDataset:
        """Return a view of these trees in this order; it shares the columns."""
        view = TreeDataset.__new__(TreeDataset)
        view.__dict__.update(self.__dict__)
        chosen = np.asarray(indices, dtype=np.int64)
        view._order = chosen if self._order is None else self._order[chosen]
        return view

    def __len__(self) -> int:
        return len(self._trees) - 1 if self._order is None else len(self._order)

    def _stored(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        return index if self._order is None else int(self._order[index])

    def __getitem__(self, index: int) -> PromptTree:
        stored = self._stored(index)
        first, end = map(int, self._trees.numbers[stored : stored + 2])
        roles = branch_roles(self.layout, end - first - 1)
        prompt_mask = self._mask_of(first)
        margin = float(self._margins.numbers[stored])
        return PromptTree(
            prompt_ids=self._ids_of(first),
            prompt_mask=prompt_mask if any(prompt_mask) else (),
            branches=tuple(self._branch(segment, role) for segment, role in zip(range(first + 1, end), roles, strict=True)),
            sample_id=index % len(self),
            margin=None if margin != margin else margin,
            columns=self._columns[stored] if self._columns else {},
        )

    def prompt(self, index: int) -> Text:
        """Return the prompt as the dataset has it, text or messages; the ROLLOUT layout only."""
        return self._prompts[self._stored(index)]

    def text(self, index: int) -> str:
        """Return the prompt as rendered text, where `prepare` was asked to keep it."""
        return self._texts[self._stored(index)]

    def length(self, index: int) -> int:
        """Return `num_tokens` of a tree without building it."""
        stored = self._stored(index)
        first, end = self._segments.numbers[self._trees.numbers[stored : stored + 2]]
        return int(end - first)

    def _branch(self, segment: int, role: str) -> Branch:
        label, rank = int(self._labels.numbers[segment]), int(self._ranks.numbers[segment])
        return Branch(
            token_ids=self._ids_of(segment),
            loss_mask=self._mask_of(segment),
            role=role,
            label=None if label == _NONE else bool(label),
            rank=None if rank == _NONE else rank,
        )

    def _ids_of(self, segment: int) -> tuple[int, ...]:
        start, stop = self._segments.numbers[segment : segment + 2]
        return tuple(self._tokens.numbers[start:stop].tolist())

    def _mask_of(self, segment: int) -> tuple[bool, ...]:
        start, stop = self._segments.numbers[segment : segment + 2]
        return tuple(self._mask.numbers[start:stop].astype(bool).tolist())

    @property
    def largest_id(self) -> int:
        """The largest token id of all."""
        return int(self._tokens.numbers.max())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all token ids, masks, labels, ranks, margins, what rewards read, and the order: the data's identity."""
        digest = hashlib.sha256(self.layout.value.encode())
        for part in (self._tokens, self._mask, self._segments, self._labels, self._ranks, self._trees, self._margins):
            digest.update(part.numbers.data)
        for read in zip(self._columns, self._prompts, strict=True):
            digest.update(json.dumps(read, skipkeys=True, default=_shown).encode())
        if self._order is not None:
            digest.update(self._order.tobytes())
        return digest.hexdigest()


_ADDRESS = re.compile("0x[0-9a-fA-F]{6,}")


def _shown(value: Any) -> str:
    """Return the text of a value that JSON has not, or its type where the text would be another in each process."""
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(_shown, value)))
    text = str(value)
    return type(value).__qualname__ if _ADDRESS.search(text) else text


def tree_to_json(tree: PromptTree, tokenizer: PreTrainedTokenizerBase, text: str | None = None) -> dict[str, Any]:
    """Return a tree as plain values, with the text that its tokens stand for, special tokens included.

    `text` is the prompt as rendered, where that is known; else the prompt is decoded. A prompt of which tokens are counted has a
    mask.
    """
    prompt = str(tokenizer.decode(list(tree.prompt_ids)))
    branches = []
    for branch in tree.branches:
        known = {"label": branch.label, "rank": branch.rank}
        branches.append(
            {
                "text": decode_after(tree.prompt_ids, branch.token_ids, tokenizer),
                "role": branch.role,
                **{key: value for key, value in known.items() if value is not None},
                "token_ids": list(branch.token_ids),
                "loss_mask": list(branch.loss_mask),
            }
        )
    counted = {"prompt_loss_mask": list(tree.prompt_mask)} if tree.prompt_mask else {}
    return {"prompt": prompt if text is None else text, "branches": branches, "prompt_token_ids": list(tree.prompt_ids), **counted}
