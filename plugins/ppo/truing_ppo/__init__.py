"""PPO: proximal policy optimisation with a critic, and a penalty on the divergence from a reference."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_ppo.ppo import PPO

__all__ = ["PPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the method `ppo`."""
    return [PPO]
