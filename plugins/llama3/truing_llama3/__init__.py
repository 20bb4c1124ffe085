"""The chat markup of Llama 3, as a family of formats."""

from __future__ import annotations

from truing import ChatFamily, DatasetStrategy, Turn, chat_formats, hookimpl

__all__ = ["FORMATS", "LLAMA3", "register_dataset_strategy"]

LLAMA3 = ChatFamily(
    name="llama3",
    system=Turn("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user=Turn("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=Turn("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
)
"""What Llama 3 writes around turns; the token that begins a text is not part of it, for the tokenizer adds that."""
FORMATS = chat_formats(LLAMA3)
"""The format classes: one for each name and layout."""


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register `llama3`, `llama3.intel` and the others."""
    return FORMATS
