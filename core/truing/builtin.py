"""Core's own formats and default reward, registered through the hooks that every plugin uses."""

from __future__ import annotations

from truing.data.example import DatasetStrategy
from truing.hookspecs import hookimpl
from truing.rewards import Reward


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register preference, text, passthrough, unpaired and ranked."""
    from truing.data.strategies import BUILTIN

    return list(BUILTIN)


@hookimpl
def register_reward() -> list[type[Reward]]:
    """Register `default`, which is what an online method without rewards gets."""
    from truing.rewards import DefaultReward

    return [DefaultReward]
