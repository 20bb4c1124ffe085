"""How a dataset writes its messages: under which keys, and with which names for the roles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing.data import columns as col
from truing.data.example import Message
from truing.errors import RowError
from truing.suggest import did_you_mean

ROLE_NAMES: Mapping[str, str] = {
    **{role: role for role in col.ROLES},
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "tool_response": "tool",
}
"""Names of roles that are known without being told, and whose they are."""
CALL_ROLES = ("function_call", "tool_call")
"""Roles of turns that are the assistant's call of a tool, written as JSON: {"name": ..., "arguments": {...}}."""
KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
"""Keys of a message that may have another name in the data."""


@attrs.frozen
class Spelling:
    """The names that a dataset has for the keys and roles of messages. Raises ValueError for names that cannot be."""

    keys: Mapping[str, str]
    """The data's names of keys of a message, by our own."""
    roles: Mapping[str, Sequence[str]]
    """The data's names of each role, beside `ROLE_NAMES`."""
    names: Mapping[str, str] = attrs.field(init=False)
    """Our role for each name in the data."""

    @names.default
    def _names(self) -> Mapping[str, str]:
        for given, known, setting in ((self.keys, KEYS, "message_property_mappings"), (self.roles, col.ROLES, "roles")):
            for name in given:
                if name not in known:
                    raise ValueError(
                        f"{setting} names {name!r}{did_you_mean(name, known)}; its keys are our own names, {', '.join(known)}, and "
                        "its values those of the data"
                    )
        used = [self.keys.get(key, key) for key in {"role": 0, "content": 0, **self.keys}]
        if len(set(used)) < len(used):
            raise ValueError(f"message_property_mappings gives one key of the data two meanings: {dict(self.keys)}")
        told: dict[str, str] = {}
        for role, names in self.roles.items():
            for name in names:
                if told.setdefault(name, role) != role:
                    raise ValueError(f"roles gives {name!r} to both {told[name]} and {role}; one name is one role")
        return {**ROLE_NAMES, **told}

    def read(self, value: Any, column: str) -> tuple[Message, ...]:
        """Return a column's messages with our keys and roles; neighbouring calls of tools are one message.

        Raises RowError where it is no list of messages.
        """
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise RowError(f"column {column!r} must be a list of messages, got {type(value).__name__} {col.shorten(value)}")
        messages: list[dict[Any, Any]] = []
        calls = False
        for index, message in enumerate(value):
            renamed, is_call = self._rename(message, f"{column}[{index}]")
            if is_call and calls:
                messages[-1]["tool_calls"] += renamed["tool_calls"]
            else:
                messages.append(renamed)
            calls = is_call
        return col.check_messages(messages, column)

    def _rename(self, message: Any, place: str) -> tuple[dict[Any, Any], bool]:
        """Return a message with our keys and role, and whether it is a call of tools that the data writes as a turn."""
        role_key, content_key = (self.keys.get(key, key) for key in ("role", "content"))
        if not isinstance(message, Mapping) or role_key not in message:
            raise RowError(
                f"{place} must be a message such as {{{role_key}: user, {content_key}: ...}}, got {col.shorten(message)}; "
                "message_property_mappings says how the data names these keys"
            )
        ours = {theirs: key for key, theirs in self.keys.items()}
        # a key of the data that has one of our names, and means something else, is left out
        renamed = {ours.get(key, key): item for key, item in message.items() if key in ours or key not in self.keys}
        role = renamed["role"]
        if isinstance(role, str) and role in CALL_ROLES and role not in self.names:
            return {"role": "assistant", "tool_calls": _read_calls(renamed.get("content"), place)}, True
        if not isinstance(role, str) or role not in self.names:
            known = ", ".join(self.names)
            raise RowError(
                f"{place} has the role {col.shorten(role)}; known are {known}: say roles: {{user: [...], ...}} for others"
            )
        return {**renamed, "role": self.names[role]}, False


def _read_calls(content: Any, place: str) -> list[dict[str, Any]]:
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except ValueError:
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise RowError(
            f'{place} is a call of a tool, so it must be JSON such as {{"name": ..., "arguments": ...}}, got {col.shorten(content)}'
        )
    return [{"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments") or {}}} for call in calls]
