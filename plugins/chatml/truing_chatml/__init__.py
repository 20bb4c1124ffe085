"""ChatML, the chat markup of Qwen and many others, as a family of formats."""

from __future__ import annotations

from truing import ChatFamily, DatasetStrategy, Turn, chat_formats, hookimpl

__all__ = ["CHATML", "FORMATS", "register_dataset_strategy"]

CHATML = ChatFamily(
    name="chatml",
    system=Turn("<|im_start|>system\n", "<|im_end|>\n"),
    user=Turn("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=Turn("<|im_start|>assistant\n", "<|im_end|>\n"),
)
"""What ChatML writes around turns."""
FORMATS = chat_formats(CHATML)
"""The format classes: one for each name and layout."""


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register `chatml`, `chatml.intel` and the others."""
    return FORMATS
