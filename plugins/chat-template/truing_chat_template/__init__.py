"""Chats that the model's own template renders, in the columns that users of Axolotl and of Argilla's data sets have."""

from __future__ import annotations

from truing import DatasetStrategy, hookimpl
from truing_chat_template.argilla import FORMATS as ARGILLA_FORMATS
from truing_chat_template.default import FORMATS as DEFAULT_FORMATS

__all__ = ["FORMATS", "register_dataset_strategy"]

FORMATS: list[type[DatasetStrategy]] = [*DEFAULT_FORMATS, *ARGILLA_FORMATS]
"""The format classes: one for each name and layout."""


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register `chat_template`, `chat_template.default`, `chat_template.argilla_chat` and `chat_template.argilla`."""
    return FORMATS
