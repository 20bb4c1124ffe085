"""Rollouts from vLLM servers: stock `vllm serve` processes that sample with the policy's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing import Rollout, hookimpl
from truing_vllm.backend import VllmRollout
from truing_vllm.settings import ServeSettings

if TYPE_CHECKING:
    import click

__all__ = ["ServeSettings", "VllmRollout", "register_command", "register_rollout"]


@hookimpl
def register_rollout() -> list[type[Rollout]]:
    """Register the rollout backend `vllm`."""
    return [VllmRollout]


@hookimpl
def register_command() -> list[click.Command]:
    """Register the command `vllm-serve`."""
    from truing_vllm.command import vllm_serve

    return [vllm_serve]
