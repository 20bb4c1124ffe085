"""Truing aligns language models with preferences. These are the public names; everything else may change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truing.context import OpenContext
from truing.data.chat_family import ChatFamily, Turn
from truing.data.chat_formats import chat_formats
from truing.data.example import DatasetStrategy, Example
from truing.dialect import Dialect
from truing.errors import ConfigError, DataError, ModelError, PluginError, RolloutError, RowError, SetupError, TruingError
from truing.hookspecs import hookimpl
from truing.loss import Advantages, Layout, Loss, LossInputs, LossOutput, Needs, OnlineLoss, PromptTokens, Scope, Term
from truing.rewards import Reward
from truing.rollout import (
    Completion,
    ConcurrentRollout,
    Environment,
    Environments,
    Fork,
    LiveRollout,
    Observation,
    Rollout,
    RolloutRequest,
    Sampling,
    VersionSpan,
    WeightSource,
)
from truing.settings import setting

if TYPE_CHECKING:
    from truing.api import align
    from truing.config import TrainConfig
    from truing.train.state import TrainState

__version__ = "0.1.0"

__all__ = [
    "Advantages",
    "ChatFamily",
    "Completion",
    "ConcurrentRollout",
    "ConfigError",
    "DataError",
    "DatasetStrategy",
    "Dialect",
    "Environment",
    "Environments",
    "Example",
    "Fork",
    "Layout",
    "LiveRollout",
    "Loss",
    "LossInputs",
    "LossOutput",
    "ModelError",
    "Needs",
    "Observation",
    "OnlineLoss",
    "OpenContext",
    "PluginError",
    "PromptTokens",
    "Reward",
    "Rollout",
    "RolloutError",
    "RolloutRequest",
    "RowError",
    "Sampling",
    "Scope",
    "SetupError",
    "Term",
    "TrainConfig",
    "TrainState",
    "TruingError",
    "Turn",
    "VersionSpan",
    "WeightSource",
    "align",
    "chat_formats",
    "hookimpl",
    "setting",
]

_LAZY = {"align": "truing.api", "TrainConfig": "truing.config", "TrainState": "truing.train.state"}


def __getattr__(name: str) -> Any:
    """Import what needs torch, or reads much, when it is first asked for."""
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'truing' has no attribute {name!r}")
