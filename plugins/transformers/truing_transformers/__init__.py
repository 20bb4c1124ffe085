"""Rollouts in process: completions are sampled with the policy itself."""

from __future__ import annotations

from truing import Rollout, hookimpl
from truing_transformers.backend import TransformersRollout

__all__ = ["TransformersRollout", "register_rollout"]


@hookimpl
def register_rollout() -> list[type[Rollout]]:
    """Register the rollout backend `transformers`."""
    return [TransformersRollout]
