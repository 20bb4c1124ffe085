"""Rollouts in OpenEnv environments: the policy acts in a server, over its WebSocket protocol."""

from __future__ import annotations

import click

from truing import Rollout, hookimpl
from truing_openenv.backend import OpenEnvRollout
from truing_openenv.check import env_check

__all__ = ["OpenEnvRollout", "register_command", "register_rollout"]


@hookimpl
def register_rollout() -> list[type[Rollout]]:
    """Register the rollout backend `openenv`."""
    return [OpenEnvRollout]


@hookimpl
def register_command() -> list[click.Command]:
    """Register the command `env-check`."""
    return [env_check]
