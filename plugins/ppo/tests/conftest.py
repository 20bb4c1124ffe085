from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch

from truing import Layout, LossInputs


def make_rollouts(
    branches: Sequence[Sequence[tuple[float, float, float]]],
    rewards: Sequence[Sequence[float]],
    *,
    weights: Sequence[float] | None = None,
    truncated: Sequence[bool] | None = None,
    **fields: Any,
) -> LossInputs:
    """A rollout batch, each branch of a prompt of its own: of each token its log-prob, the reference's, and its value."""
    lengths = torch.tensor([len(branch) for branch in branches])
    columns = torch.tensor([token for branch in branches for token in branch], dtype=torch.float64).view(-1, 3)
    return LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=columns[:, 0],
        reference_token_logps=columns[:, 1],
        token_values=columns[:, 2],
        sequence_ids=torch.arange(len(branches)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(branches)),
        lengths=lengths,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        reward_weights=torch.tensor(weights or [1.0] * len(rewards[0]), dtype=torch.float64),
        truncated=torch.tensor(truncated or [False] * len(branches)),
        **fields,
    )


def make_update(ratios: Sequence[float], advantages: Sequence[float], values: Sequence[tuple[float, float, float]]) -> LossInputs:
    """One branch in a later step of an update: of each token its ratio, its advantage, and its value, value before and return."""
    columns = torch.tensor(values, dtype=torch.float64)
    inputs = make_rollouts([[(-1.0, -1.0, value[0]) for value in values]], [[0.0]])
    return attrs.evolve(
        inputs,
        token_logps=(-1 + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(),
        proximal_token_logps=inputs.token_logps,
        token_values=columns[:, 0].clone().requires_grad_(),
        columns={"values": columns[:, 1], "returns": columns[:, 2]},
        advantages=torch.tensor(advantages, dtype=torch.float64),
    )


@pytest.fixture(scope="session")
def rollouts() -> Callable[..., LossInputs]:
    return make_rollouts


@pytest.fixture(scope="session")
def update() -> Callable[..., LossInputs]:
    return make_update
