"""`chat_template.argilla_chat` and `chat_template.argilla`: two conversations that differ in their last message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import DatasetStrategy, RowError, setting
from truing.data import columns as col
from truing.data.conversations import WholePair, WholePrompt
from truing.data.example import Message


@attrs.frozen(kw_only=True)
class ArgillaChatPair(WholePair):
    """Columns chosen and rejected, conversations that are the same up to their last message, the assistant's."""

    name: ClassVar[str] = "chat_template.argilla_chat"


@attrs.frozen(kw_only=True)
class ArgillaChatPrompt(WholePrompt):
    """Column chosen, a conversation, without its last message."""

    name: ClassVar[str] = "chat_template.argilla_chat"


@attrs.frozen(kw_only=True)
class ArgillaPair(WholePair):
    """Columns chosen and rejected as argilla_chat reads them, user and assistant in turn; a column prompt is the one user turn."""

    name: ClassVar[str] = "chat_template.argilla"
    field_prompt: str = setting("prompt", help="Column that takes the place of the one user turn; it may be missing or null.")

    def check_prompt(self, row: Mapping[str, Any], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return the prompt with the column's text in it. Raises RowError where user and assistant do not alternate."""
        return _with_prompt(row, self.field_prompt, self.field_chosen, prompt)

    def other_columns(self, row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """Return the columns that are not read."""
        return super().other_columns(row, self.field_prompt, *used)


@attrs.frozen(kw_only=True)
class ArgillaPrompt(ArgillaPair, WholePrompt):
    """Column chosen as argilla_chat reads it, user and assistant in turn; a column prompt is the one user turn."""


def _with_prompt(row: Mapping[str, Any], column: str, messages_column: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages before the answer, the text of a column in the place of the one user turn. Raises RowError."""
    system = messages[:1] if messages[0]["role"] == "system" else ()
    turns = messages[len(system) :]
    expected = ["user", "assistant"] * len(turns)
    for index, (turn, role) in enumerate(zip(turns, expected, strict=False), start=len(system)):
        if turn["role"] != role:
            raise RowError(
                f"{messages_column}[{index}] has the role {turn['role']!r} where {role!r} is due; user and assistant must "
                "alternate, or use chat_template.argilla_chat"
            )
    if row.get(column) is None:
        return messages
    text = col.read_string(row, column)
    if len(turns) != 1:
        raise RowError(
            f"column {column!r} takes the place of one user turn, and column {messages_column!r} has {len(turns)} messages before "
            f"the answer; leave out {column!r}, or use chat_template.argilla_chat"
        )
    return (*system, {"role": "user", "content": text})


FORMATS: list[type[DatasetStrategy]] = [ArgillaChatPair, ArgillaChatPrompt, ArgillaPair, ArgillaPrompt]
"""The classes of both names."""
