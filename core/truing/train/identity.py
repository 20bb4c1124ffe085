"""What makes a run this run and no other: what a checkpoint must share with the run that resumes from it."""

from __future__ import annotations

import hashlib

from torch import nn

from truing.config import TrainConfig
from truing.train.order import DataOrder

SAMPLED = 64
"""Numbers of each weight that its fingerprint reads; training changes nearly all of them."""


def run_identity(config: TrainConfig, model: nn.Module, order: DataOrder, data: str) -> dict[str, str | int]:
    """Return what the course of a run depends on, by the words that an error names it with.

    `model` is as it is before the first step: the reference is made of it, so other starting weights are another run.
    """
    trained = [f"{name} {tuple(weight.shape)}" for name, weight in model.named_parameters() if weight.requires_grad]
    return {
        "data": data[:16],
        "method": config.method.name,
        "prompts per step": order.per_step,
        "seed": order.seed,
        "trained weights": hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16],
        "starting weights": _weights_fingerprint(model),
    }


def _weights_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLED)].double().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]
