"""A format that is told its columns and its text in the configuration."""

from __future__ import annotations

from truing import DatasetStrategy, hookimpl
from truing_user_defined.formats import (
    FORMATS,
    UserDefined,
    UserDefinedCompletion,
    UserDefinedLabeled,
    UserDefinedPrompt,
)

__all__ = [
    "FORMATS",
    "UserDefined",
    "UserDefinedCompletion",
    "UserDefinedLabeled",
    "UserDefinedPrompt",
    "register_dataset_strategy",
]


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register `user_defined` and `user_defined.default`."""
    return FORMATS
