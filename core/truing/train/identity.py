"""What makes a run this run and no other: what a checkpoint must share with the run that resumes from it."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from truing.config import TrainConfig
from truing.model.digest import digest
from truing.train.order import DataOrder


def run_identity(
    config: TrainConfig, model: nn.Module, order: DataOrder, data: str, *, reference: nn.Module | None = None
) -> dict[str, str | int]:
    """Return what the course of a run depends on, by the words that an error names it with.

    `model` is as it is before the first step: the reference is made of it, so other starting weights are another run. So are the
    weights of a reference that is another model.
    """
    trained = [f"{name} {tuple(weight.shape)}" for name, weight in model.named_parameters() if weight.requires_grad]
    return {
        "data": data[:16],
        "method": config.method.name,
        "prompts per step": order.per_step,
        "seed": order.seed,
        "trained weights": hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16],
        "starting weights": _digest(model),
        **({} if reference is None else {"weights of the reference": _digest(reference)}),
    }


def _digest(model: nn.Module) -> str:
    return digest((name, tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor))[:16]
