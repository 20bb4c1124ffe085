"""What makes a run this run and no other: what a checkpoint must share with the run that resumes from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn

from truing.config import TrainConfig
from truing.model.digest import digest
from truing.model.policy import Policy
from truing.train.order import DataOrder

EVAL_DATA = "evaluation data"
"""The one part of an identity that may change from one resume to the next: no number of the training depends on it."""


def run_identity(
    config: TrainConfig,
    policy: Policy,
    order: DataOrder,
    data: str,
    *,
    eval_data: str | None = None,
    reference: nn.Module | None = None,
) -> dict[str, str | int]:
    """Return what the course of a run depends on, by the words that an error names it with.

    `data` and `eval_data` are fingerprints. `policy` is as it is before the first step: the reference is made of it, so other
    starting weights are another run. So are the weights of a reference that is another model.
    """
    parts = {"": policy.model} | {f"{name}.": head for name, head in policy.heads.items()}
    trained = [
        f"{prefix}{name} {tuple(weight.shape)}"
        for prefix, part in parts.items()
        for name, weight in part.named_parameters()
        if weight.requires_grad
    ]
    return {
        "data": data[:16],
        **({} if eval_data is None else {EVAL_DATA: eval_data[:16]}),
        "method": config.method.name,
        "prompts per step": order.per_lot,
        **({} if order.steps_per_lot == 1 else {"steps on a rollout batch": order.steps_per_lot}),
        "seed": order.seed,
        "trained weights": hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16],
        "starting weights": _digest(parts),
        **({} if reference is None else {"weights of the reference": _digest({"": reference})}),
    }


def _digest(parts: Mapping[str, nn.Module]) -> str:
    states = (part.state_dict(prefix=prefix) for prefix, part in parts.items())
    return digest((name, tensor) for state in states for name, tensor in state.items() if isinstance(tensor, Tensor))[:16]
