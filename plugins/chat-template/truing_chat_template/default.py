"""`chat_template` and `chat_template.default`: a conversation in one column, its answers in others or at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import DatasetStrategy
from truing.data.conversations import ConversationAnswer, ConversationLabel, ConversationPair, ConversationPrompt
from truing.data.looks import is_messages


@attrs.frozen(kw_only=True)
class ChatTemplatePair(ConversationPair):
    """Column messages, and its answers in chosen and rejected: text, a message, or messages of which the last is read."""

    name: ClassVar[str] = "chat_template"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has messages of ours, and two answers to them."""
        answers = (row.get("chosen"), row.get("rejected"))
        return None not in answers and row.get("prompt") is None and is_messages(row.get("messages"))


@attrs.frozen(kw_only=True)
class ChatTemplateAnswer(ConversationAnswer):
    """Column messages, of which the last, the assistant's, is the response."""

    name: ClassVar[str] = "chat_template"


@attrs.frozen(kw_only=True)
class ChatTemplateLabel(ConversationLabel):
    """Column messages, of which the last, the assistant's, is the response, and column label."""

    name: ClassVar[str] = "chat_template"


@attrs.frozen(kw_only=True)
class ChatTemplatePrompt(ConversationPrompt):
    """Column messages, without an answer at its end."""

    name: ClassVar[str] = "chat_template"

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has messages of ours, and no column of another format's beside them."""
        others = ("prompt", "text", "query", "rejected_response", "rejected_messages")
        return is_messages(row.get("messages")) and all(row.get(column) is None for column in others)


def _as_default(base: type[DatasetStrategy]) -> type[DatasetStrategy]:
    """Return the same format by its longer name, which is never chosen by columns."""
    body = {
        "__module__": __name__,
        "__doc__": base.__doc__,
        "name": "chat_template.default",
        "recognises": None,
    }
    made: type[DatasetStrategy] = attrs.frozen(kw_only=True)(type(f"{base.__name__}Default", (base,), body))
    return made


_PLAIN: list[type[DatasetStrategy]] = [ChatTemplatePair, ChatTemplateAnswer, ChatTemplateLabel, ChatTemplatePrompt]
FORMATS: list[type[DatasetStrategy]] = [*_PLAIN, *map(_as_default, _PLAIN)]
"""The classes of both names."""
