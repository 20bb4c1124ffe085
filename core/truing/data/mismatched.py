"""Gives every labelled completion a mismatched one beside it: the completion of another prompt.

KTO estimates a KL divergence from them. A partner is chosen once for a run and not within each batch, so that what a sample means
does not depend on how steps are cut, and log-probabilities of the reference can be taken before training.
"""

from __future__ import annotations

import hashlib

import attrs
import numpy as np
from numpy.typing import NDArray

from truing.data.report import DataReport
from truing.data.tree import MISMATCHED, PromptTree, Trees, in_chunks
from truing.errors import DataError


class Mismatched:
    """Trees of the LABELED layout, each with a second branch: what its partner's first one is, cut to `max_length` in all."""

    def __init__(self, trees: Trees, seed: int, max_length: int | None, key: str = "data") -> None:
        """Choose the partners. Raises DataError where all prompts are the same."""
        self._trees = trees
        prompts = np.empty(len(trees), dtype=np.int64)
        room = np.empty(len(trees), dtype=np.int64)
        lengths = np.empty(len(trees), dtype=np.int64)
        for index, tree in enumerate(tree for chunk in in_chunks(trees) for tree in chunk):
            # the hash of numbers is the same in every process; two prompts that share one would only not be partners
            prompts[index] = hash(tree.prompt_ids)
            room[index] = np.iinfo(np.int64).max if max_length is None else max_length - len(tree.prompt_ids)
            lengths[index] = len(tree.branches[0].token_ids)
        self._partners = choose_partners(prompts, seed, key)
        self._lengths = np.minimum(lengths[self._partners], room)
        self.cut = int((lengths[self._partners] > room).sum())
        """How many mismatched completions were cut."""

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> PromptTree:
        tree = self._trees[index]
        other = self._trees[int(self._partners[index])].branches[0].token_ids[: self._lengths[index]]
        branch = attrs.evolve(tree.branches[0], token_ids=other, loss_mask=(True,) * len(other), role=MISMATCHED, label=None)
        return attrs.evolve(tree, branches=(*tree.branches, branch))

    def length(self, index: int) -> int:
        """Return `num_tokens` of a tree without building it."""
        return self._trees.length(index) + int(self._lengths[index])

    @property
    def largest_id(self) -> int:
        """The largest token id of all."""
        return self._trees.largest_id

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the trees', the partners, and what is left of their completions."""
        digest = hashlib.sha256(self._trees.fingerprint.encode())
        for part in (self._partners, self._lengths):
            digest.update(part.tobytes())
        return digest.hexdigest()


def with_mismatched(trees: Trees, report: DataReport, seed: int, key: str) -> Mismatched:
    """Return the trees with mismatched branches, and note in the report what became of them. Raises DataError as the class does."""
    found = Mismatched(trees, seed, report.max_length, key)
    report.mismatched_truncated = found.cut
    report.tokens = sum(found.length(index) for index in range(len(found)))
    return found


def choose_partners(prompts: NDArray[np.int64], seed: int, key: str = "data") -> NDArray[np.int64]:
    """Return for each sample another one of a different prompt: the next such in a ring of all samples, shuffled under `seed`.

    `prompts` [N] says which samples share a prompt, `key` what an error calls the data. Raises DataError where all do.
    """
    order = np.random.default_rng(seed).permutation(len(prompts))
    following = np.roll(order, -1)
    ends = np.flatnonzero(prompts[order] != prompts[following])  # where a run of one prompt ends in the ring
    if not len(ends):
        raise DataError(
            f"{key}: all samples ({len(prompts):,}) have the same prompt, and the method compares each completion with one of "
            "another prompt; give data with two prompts or more, or a method, or loss_type, that compares none"
        )
    at = np.searchsorted(ends, np.arange(len(order))) % len(ends)
    partners = np.empty_like(order)
    partners[order] = following[ends[at]]
    return partners
