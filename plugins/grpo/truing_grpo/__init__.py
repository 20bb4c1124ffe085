"""GRPO: group-relative policy optimisation and the losses that grew from it."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_grpo.grpo import GRPO

__all__ = ["GRPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the method `grpo`."""
    return [GRPO]
