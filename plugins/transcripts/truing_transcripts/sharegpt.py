"""`sharegpt`: conversations of {from, value}, with a pair's answers or a label in columns beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import setting
from truing.data.conversations import (
    ConversationAnswer,
    ConversationBase,
    ConversationLabel,
    ConversationPair,
    ConversationPrompt,
)
from truing.data.looks import is_messages

_KEYS = {"role": "from", "content": "value"}


def _has_turns(row: Mapping[str, Any]) -> bool:
    return is_messages(row.get("conversations"), *_KEYS.values())


def _has_pair(row: Mapping[str, Any]) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


@attrs.frozen(kw_only=True)
class _ShareGpt(ConversationBase):
    """A conversation in the column and with the keys that ShareGPT gives it."""

    name: ClassVar[str] = "sharegpt"
    field_messages: str = setting(
        "conversations", help="Column of the conversation: a list of messages, or text for one user turn."
    )
    message_property_mappings: Mapping[str, str] = setting(
        factory=lambda: dict(_KEYS), help="The data's names of a message's keys, by our own."
    )


@attrs.frozen(kw_only=True)
class ShareGptPair(_ShareGpt, ConversationPair):
    """Column conversations, a list of {from, value}, and its answers chosen and rejected."""

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation and two answers."""
        return _has_turns(row) and _has_pair(row)


@attrs.frozen(kw_only=True)
class ShareGptAnswer(_ShareGpt, ConversationAnswer):
    """Column conversations, a list of {from, value}, of which the last is the response."""

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation, with its answer in it, and nothing that says it may be bad."""
        return _has_turns(row) and not _has_pair(row) and "label" not in row


@attrs.frozen(kw_only=True)
class ShareGptLabel(_ShareGpt, ConversationLabel):
    """Column conversations, a list of {from, value}, of which the last is the response, and column label."""

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation and a label."""
        return _has_turns(row) and row.get("label") is not None


@attrs.frozen(kw_only=True)
class ShareGptPrompt(_ShareGpt, ConversationPrompt):
    """Column conversations, a list of {from, value}, without an answer at its end."""

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation."""
        return _has_turns(row)
