"""Core's own formats and default rewards, registered through the hooks that every plugin uses."""

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
    """Register `environment` and `default`, which are what an online method without rewards gets, in an environment and else."""
    from truing.rewards import DefaultReward, EnvironmentReward

    return [DefaultReward, EnvironmentReward]
