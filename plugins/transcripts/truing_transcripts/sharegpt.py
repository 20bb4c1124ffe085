"""`sharegpt`: conversations of {from, value}, with a pair's answers or a label in columns beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import setting
from truing.data.conversations import ConversationAnswer, ConversationLabel, ConversationPair, ConversationPrompt
from truing.data.looks import is_messages

_KEYS = {"role": "from", "content": "value"}
_KEYS_HELP = "The data's names of a message's keys, by our own."
_MESSAGES_HELP = "Column of the conversation: a list of messages, or text for one user turn."


def _keys() -> dict[str, str]:
    return dict(_KEYS)


def _has_turns(row: Mapping[str, Any]) -> bool:
    return is_messages(row.get("conversations"), *_KEYS.values())


def _has_pair(row: Mapping[str, Any]) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


@attrs.frozen(kw_only=True)
class ShareGptPair(ConversationPair):
    """Column conversations, a list of {from, value}, and its answers chosen and rejected."""

    name: ClassVar[str] = "sharegpt"
    field_messages: str = setting("conversations", help=_MESSAGES_HELP)
    message_property_mappings: Mapping[str, str] = setting(factory=_keys, help=_KEYS_HELP)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation and two answers."""
        return _has_turns(row) and _has_pair(row)


@attrs.frozen(kw_only=True)
class ShareGptAnswer(ConversationAnswer):
    """Column conversations, a list of {from, value}, of which the last is the response."""

    name: ClassVar[str] = "sharegpt"
    field_messages: str = setting("conversations", help=_MESSAGES_HELP)
    message_property_mappings: Mapping[str, str] = setting(factory=_keys, help=_KEYS_HELP)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation, with its answer in it, and nothing that says it may be bad."""
        return _has_turns(row) and not _has_pair(row) and "label" not in row


@attrs.frozen(kw_only=True)
class ShareGptLabel(ConversationLabel):
    """Column conversations, a list of {from, value}, of which the last is the response, and column label."""

    name: ClassVar[str] = "sharegpt"
    field_messages: str = setting("conversations", help=_MESSAGES_HELP)
    message_property_mappings: Mapping[str, str] = setting(factory=_keys, help=_KEYS_HELP)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation and a label."""
        return _has_turns(row) and row.get("label") is not None


@attrs.frozen(kw_only=True)
class ShareGptPrompt(ConversationPrompt):
    """Column conversations, a list of {from, value}, without an answer at its end."""

    name: ClassVar[str] = "sharegpt"
    field_messages: str = setting("conversations", help=_MESSAGES_HELP)
    message_property_mappings: Mapping[str, str] = setting(factory=_keys, help=_KEYS_HELP)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has such a conversation."""
        return _has_turns(row)
