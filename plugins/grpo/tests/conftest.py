from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import pytest
import torch

from truing import Layout, LossInputs
from truing.testing import reduce_step

Branches = Sequence[Sequence[float]]
BEFORE = log(1 / 4)
"""The log-probability of every token at the start of the update."""


def flat(branches: Branches) -> torch.Tensor:
    return torch.tensor([x for branch in branches for x in branch], dtype=torch.float64)


def make_inputs(logps: Branches, trees: Sequence[int] | None = None, limit: int = 10, **fields: Any) -> LossInputs:
    """ROLLOUT inputs of completions with these log-probs, one a tree by default; lists of other fields are of the same form."""
    lengths = torch.tensor([len(branch) for branch in logps])
    by_token = {name: flat(value) for name, value in fields.items() if name.startswith(("token", "reference", "behavior", "prox"))}
    by_branch = {name: torch.tensor(value) for name, value in fields.items() if name in ("keep", "truncated")}
    numbers = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in fields.items()
        if name in ("advantages", "rewards", "reward_weights")
    }
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=flat(logps).requires_grad_(),
        sequence_ids=torch.arange(len(logps)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(logps)) if trees is None else torch.tensor(trees),
        lengths=lengths,
        max_completion_length=limit,
        **by_token,
        **by_branch,
        **numbers,
    )


def make_ratio_inputs(ratios: Branches, advantages: Sequence[float], **fields: Any) -> LossInputs:
    """Inputs whose tokens had the probability 1/4 at the start of the update, and have it times these ratios now."""
    before = [[BEFORE] * len(branch) for branch in ratios]
    logps = [[BEFORE + log(ratio) for ratio in branch] for branch in ratios]
    return make_inputs(logps, advantages=advantages, proximal_token_logps=before, **fields)


def make_rollouts(rewards: Sequence[Sequence[float]], trees: Sequence[int], weights: Sequence[float] | None = None, **fields: Any):
    """Rollouts of one token each, or of `lengths`, with these rewards [B, R]."""
    lengths = fields.pop("lengths", [1] * len(rewards))
    weights = [1.0] * len(rewards[0]) if weights is None else weights
    return make_inputs([[-1.0] * length for length in lengths], trees, rewards=rewards, reward_weights=weights, **fields)


@pytest.fixture(scope="session")
def ratios() -> Callable[..., LossInputs]:
    return make_ratio_inputs


@pytest.fixture(scope="session")
def sampled() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture(scope="session")
def rollouts() -> Callable[..., LossInputs]:
    return make_rollouts


@pytest.fixture(scope="session")
def reduced() -> Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    return reduce_step
