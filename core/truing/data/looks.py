"""What a row looks like: the questions that formats ask to recognise their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_of(row: Mapping[str, Any], *columns: str) -> str | None:
    """Return the first of some columns that has a value."""
    return next((column for column in columns if row.get(column) is not None), None)


def is_messages(value: Any, role: str = "role", content: str = "content") -> bool:
    """Return whether a value is a list of mappings with these keys, by its first."""
    is_list = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)
    return is_list and role in value[0] and (content in value[0] or "tool_calls" in value[0])


def is_pair(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a pair as `preference` reads it: both sides, and a prompt in a column or as what both begin with.

    A row with a column for a system turn is none, for that would be left out, in this row or in a later one.
    """
    sides = [row.get(column) for column in ("chosen", "rejected")]
    if None in sides or "system" in row:
        return False
    chats = [is_messages(side) for side in sides]
    if row.get("prompt") is not None:
        return all(chat or isinstance(side, str) for chat, side in zip(chats, sides, strict=True))
    return all(chats) and first_of(row, "messages", "conversations") is None


def has_pair_beside(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a side of a pair, in whatever shape."""
    return first_of(row, "chosen", "rejected", "rejected_response", "rejected_messages") is not None


def has_system_beside(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a column for a system turn that belongs to no `query`, so that it would be left out."""
    return "system" in row and first_of(row, "prompt", "text", "query") != "query"
