"""Sampling completions: the contract between core and rollout backends."""

from truing.rollout.completion import (
    Completion,
    ConcurrentRollout,
    EpisodeRecord,
    Fork,
    LiveRollout,
    Rollout,
    RolloutRequest,
    Sampling,
    VersionSpan,
    WeightSource,
)
from truing.rollout.environment import Environment, Environments, Observation

__all__ = [
    "Completion",
    "ConcurrentRollout",
    "Environment",
    "Environments",
    "EpisodeRecord",
    "Fork",
    "LiveRollout",
    "Observation",
    "Rollout",
    "RolloutRequest",
    "Sampling",
    "VersionSpan",
    "WeightSource",
]
