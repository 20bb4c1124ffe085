"""What makes a run this run and no other: what a checkpoint must share with the run that resumes from it."""

from __future__ import annotations

import hashlib

from torch import Tensor

from truing.config import TrainConfig
from truing.model.digest import digest
from truing.model.policy import Policy
from truing.train.order import DataOrder


def run_identity(config: TrainConfig, policy: Policy, order: DataOrder, data: str) -> dict[str, str | int]:
    """Return what the course of a run depends on, by the words that an error names it with.

    `policy` is as it is before the first step: the reference is made of it, so other starting weights are another run.
    """
    head = policy.score_head
    parameters = [*policy.model.named_parameters(), *(head.named_parameters("score_head") if head else ())]
    trained = [f"{name} {tuple(weight.shape)}" for name, weight in parameters if weight.requires_grad]
    state = {**policy.model.state_dict(), **(head.state_dict(prefix="score_head.") if head else {})}
    weights = ((name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))
    return {
        "data": data[:16],
        "method": config.method.name,
        "prompts per step": order.per_step,
        "seed": order.seed,
        "trained weights": hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16],
        "starting weights": digest(weights)[:16],
    }
