"""A prompt with the completions that were sampled for it, as the tree that is trained on."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs
import torch

from truing.data.encode import common_length
from truing.data.tree import Branch, PromptTree, Sampled, TokenIds
from truing.rollout.completion import Completion, Fork, rows_of
from truing.rollout.sampler import Group


def tree_of(prompt: PromptTree, group: Group) -> PromptTree:
    """Return the prompt with its completions as branches, each behind the earlier rows of its episode.

    Where episodes begin with more than the dataset's prompt, what all of them begin with is the tree's prompt, and the rest stands
    before each branch, not counted.
    """
    beginnings = (row.prompt_ids for completion in group.completions for row in rows_of(completion))
    shared = functools.reduce(_common, beginnings)
    branches = tuple(
        branch
        for completion, rewards in zip(group.completions, group.rewards, strict=True)
        for branch in _branches(completion, rewards, len(shared))
    )
    return attrs.evolve(prompt, prompt_ids=shared, branches=branches, columns={})


def _common(first: TokenIds, second: TokenIds) -> TokenIds:
    return first if first is second else first[: common_length(first, second)]


def _branches(completion: Completion, rewards: tuple[float, ...], start: int) -> Iterator[Branch]:
    for fork in completion.forks:
        yield _branch(fork, start, Sampled(rewards=rewards, fork=True))
    sampled = Sampled(rewards=rewards, truncated=completion.finish_reason == "length")
    yield _branch(completion, start, sampled)


def _branch(row: Completion | Fork, start: int, sampled: Sampled) -> Branch:
    """Return a branch with the log-probabilities of the tokens that it counts; of its prompt, what the tree's does not have."""
    counts = row.loss_mask or (True,) * len(row.token_ids)
    if row.token_logps is not None:
        logps = [logp for logp, counted in zip(row.token_logps, counts, strict=True) if counted]
        sampled = attrs.evolve(sampled, columns={"behavior_token_logps": torch.tensor(logps, dtype=torch.float32)})
    own = row.prompt_ids[start:]
    return Branch(token_ids=(*own, *row.token_ids), loss_mask=((False,) * len(own) + counts), sampled=sampled)
