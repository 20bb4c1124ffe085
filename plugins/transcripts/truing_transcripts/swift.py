"""`swift`: the rows of ms-swift: messages, with what was rejected or a label in columns beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import Example, Layout, RowError, setting
from truing.data import columns as col
from truing.data.conversations import ConversationAnswer, ConversationBase, ConversationLabel, ConversationPrompt
from truing.data.example import Message
from truing.data.looks import first_of, is_messages

_REJECTED = ("rejected_response", "rejected_messages")


def _recognises(row: Mapping[str, Any]) -> bool:
    """Return whether a row has messages and what was rejected beside them, which no other format has."""
    return is_messages(row.get("messages")) and first_of(row, *_REJECTED) is not None


@attrs.frozen(kw_only=True)
class SwiftPair(ConversationBase):
    """Column messages, of which the last is the chosen answer, and rejected_response or rejected_messages."""

    name: ClassVar[str] = "swift"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_rejected_response: str = setting("rejected_response", help="Column of the worse answer, as text or as a message.")
    field_rejected_messages: str = setting("rejected_messages", help="Column of the whole conversation with the worse answer.")

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has messages, and what was rejected beside them."""
        return _recognises(row)

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        names = self.field_rejected_response, self.field_rejected_messages
        chosen = self.read_conversation(row)
        prompt, good, bad = col.split_pair(chosen, self._read_rejected(row, chosen), (self.field_messages, self._rejected(row)))
        extra = self.other_columns(row, *names, "margin")
        return self.example(row, prompt, good, bad, margin=col.read_margin(row), columns=extra)

    def _rejected(self, row: Mapping[str, Any]) -> str:
        names = self.field_rejected_response, self.field_rejected_messages
        found = [name for name in names if row.get(name) is not None]
        if len(found) != 1:
            raise RowError(
                f"the row has {' and '.join(map(repr, found)) or 'neither ' + ' nor '.join(map(repr, names))}; it needs one"
            )
        return found[0]

    def _read_rejected(self, row: Mapping[str, Any], chosen: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return the conversation with the worse answer."""
        column = self._rejected(row)
        value = row[column]
        if column == self.field_rejected_messages:
            return self.read_messages(row, column)
        if isinstance(value, str):
            return (*chosen[:-1], {"role": "assistant", "content": col.check_string(value, column)})
        return (*chosen[:-1], *self.spelling.read([value] if isinstance(value, Mapping) else value, column))


@attrs.frozen(kw_only=True)
class SwiftAnswer(ConversationAnswer):
    """Column messages, of which the last, the assistant's, is the response; what was rejected is not read."""

    name: ClassVar[str] = "swift"

    def other_columns(self, row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """Return the columns that are not read, without what was rejected."""
        return super().other_columns(row, *_REJECTED, "margin", *used)


@attrs.frozen(kw_only=True)
class SwiftLabel(ConversationLabel):
    """Column messages, of which the last, the assistant's, is the response, and column label."""

    name: ClassVar[str] = "swift"


@attrs.frozen(kw_only=True)
class SwiftPrompt(ConversationPrompt):
    """Column messages, without an answer at its end."""

    name: ClassVar[str] = "swift"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has messages, and what was rejected beside them."""
        return _recognises(row)

    def other_columns(self, row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """Return the columns that are not read, without what was rejected."""
        return super().other_columns(row, *_REJECTED, *used)
