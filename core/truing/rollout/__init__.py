"""Sampling completions: the contract between core and rollout backends."""

from truing.rollout.completion import Completion, LiveRollout, Rollout, RolloutRequest, Sampling, VersionSpan, WeightSource

__all__ = ["Completion", "LiveRollout", "Rollout", "RolloutRequest", "Sampling", "VersionSpan", "WeightSource"]
