"""What is compared: an arm runs whole optimiser steps on batches that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn

from truing.data.tree import PromptTree

LEARNING_RATE = 1e-10
"""So small that every step of every arm starts from the same weights."""
BETA = 0.1
MAX_GRAD_NORM = 1.0
SEED = 0


@attrs.frozen
class Step:
    """What a step reports."""

    loss: float
    grad_norm: float
    """Before clipping."""
    metrics: Mapping[str, float]
    """What the step logs, by each side's own names."""


class Arm(Protocol):
    """One side of a comparison, its models loaded."""

    name: str

    @property
    def model(self) -> nn.Module:
        """The policy."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's own optimiser."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what may be trained, by names that all arms of a case share."""

    def prepare(self, batches: Sequence[Sequence[PromptTree]]) -> None:
        """Do what is done once before training, such as taking the reference's log-probabilities of all batches, seeds 0 to n."""

    def step(self, trees: Sequence[PromptTree]) -> Step:
        """Collate, forward, backward, clip and update."""


def step_with_gradients(arm: Arm, trees: Sequence[PromptTree]) -> tuple[Step, dict[str, Tensor]]:
    """Run a step and return the clipped gradients that its optimiser got, by parameter."""
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        found.update({name: weight.grad.clone() for name, weight in arm.parameters().items() if weight.grad is not None})

    hook = arm.optimizer.register_step_pre_hook(keep)
    try:
        return arm.step(trees), found
    finally:
        hook.remove()


def worst_gradient(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative difference of a parameter's gradient, in the Euclidean norm, and the parameter."""
    assert found.keys() == expected.keys(), f"gradients of different parameters: {sorted(found.keys() ^ expected.keys())}"
    assert found, "no parameter has a gradient"
    return max((float((found[name] - gradient).norm() / gradient.norm()), name) for name, gradient in expected.items())
