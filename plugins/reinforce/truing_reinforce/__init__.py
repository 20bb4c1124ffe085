"""REINFORCE and RLOO: policy gradients of sampled rewards with a baseline, without a critic."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_reinforce.reinforce import Reinforce
from truing_reinforce.rloo import RLOO

__all__ = ["RLOO", "Reinforce", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the methods `reinforce` and `rloo`."""
    return [Reinforce, RLOO]
