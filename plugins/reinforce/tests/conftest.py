from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from truing import Layout, LossInputs

ONE_TOKEN = ((-1.0, -1.0),)


def make_rollouts(
    groups: Sequence[Sequence[float | Sequence[float]]],
    tokens: Sequence[Sequence[tuple[float, float]]] | None = None,
    *,
    weights: Sequence[float] | None = None,
    truncated: Sequence[bool] | None = None,
    **fields: Any,
) -> LossInputs:
    """A rollout batch: of each prompt its completions' rewards (a number, or one of each reward).

    `tokens` are the log-probs and the reference's of each completion's tokens; one token of log-ratio 0 by default.
    """
    rewards = [reward if isinstance(reward, (list, tuple)) else (reward,) for group in groups for reward in group]
    branches = tokens or [ONE_TOKEN] * len(rewards)
    lengths = torch.tensor([len(branch) for branch in branches])
    logps = torch.tensor([token for branch in branches for token in branch], dtype=torch.float64).view(-1, 2)
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=logps[:, 0],
        reference_token_logps=logps[:, 1],
        sequence_ids=torch.arange(len(branches)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups])),
        lengths=lengths,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        reward_weights=torch.tensor(weights or [1.0] * len(rewards[0]), dtype=torch.float64),
        truncated=torch.tensor(truncated or [False] * len(branches)),
        **fields,
    )


def make_update(ratios: Sequence[Sequence[float]], advantages: Sequence[float], **fields: Any) -> LossInputs:
    """Branches in a later step of an update: the ratios of each one's tokens, and the advantages, [T] or [B]."""
    lengths = torch.tensor([len(branch) for branch in ratios])
    moved = torch.tensor([ratio for branch in ratios for ratio in branch], dtype=torch.float64).log()
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=(moved - 1).requires_grad_(),
        proximal_token_logps=torch.full_like(moved, -1),
        sequence_ids=torch.arange(len(ratios)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(ratios)),
        lengths=lengths,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        **fields,
    )


@pytest.fixture(scope="session")
def rollouts() -> Callable[..., LossInputs]:
    return make_rollouts


@pytest.fixture(scope="session")
def update() -> Callable[..., LossInputs]:
    return make_update
