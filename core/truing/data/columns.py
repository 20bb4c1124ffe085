"""Reads one column of a row, or raises a RowError that says which column, what it holds and what to do."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from truing.data.example import Message, Text
from truing.errors import RowError
from truing.redact import redact
from truing.suggest import did_you_mean

ROLES = ("system", "developer", "user", "assistant", "tool")
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def shorten(value: Any, limit: int = 60) -> str:
    """Return `repr(value)` cut to about `limit` characters, for error messages."""
    text = redact(repr(value))  # before it is cut, for the beginning of a secret is not found
    return text if len(text) <= limit else f"{text[:limit]}…"


def read(row: Mapping[str, Any], column: str) -> Any:
    """Return the column's value. Raises RowError where it is missing or null."""
    if column not in row:
        columns = ", ".join(map(repr, row)) or "none"
        hint = did_you_mean(column, map(str, row))
        raise RowError(
            f"column {column!r} is missing{hint}; the row has {columns}: rename a column, or choose the format that fits"
        )
    if row[column] is None:
        raise RowError(f"column {column!r} is null; it needs a value")
    return row[column]


def read_string(row: Mapping[str, Any], column: str, *, may_be_empty: bool = False) -> str:
    """Return a column of text, unchanged. Raises RowError where it is not text or, unless allowed, blank."""
    return check_string(read(row, column), column, may_be_empty=may_be_empty)


def check_string(value: Any, column: str, *, may_be_empty: bool = False) -> str:
    """Return `value` if it is text. Raises RowError where it is not or, unless allowed, blank."""
    if not isinstance(value, str):
        raise RowError(f"column {column!r} must be text, got {type(value).__name__} {shorten(value)}")
    if not may_be_empty and not value.strip():
        raise RowError(f"column {column!r} is empty ({shorten(value)}); it needs text")
    return value


def first_present(row: Mapping[str, Any], columns: str | Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the first of some columns that is there and not null, and a note for the report where others are there too.

    Raises RowError where there is none.
    """
    names = (columns,) if isinstance(columns, str) else columns
    found = [name for name in names if row.get(name) is not None]
    if not found and len(names) == 1:
        read(row, names[0])
    if not found:
        listed, has = (", ".join(map(repr, some)) or "none" for some in (names, row))
        raise RowError(f"none of the columns {listed} is there; the row has {has}: rename a column, or choose the format that fits")
    ignored = ", ".join(map(repr, found[1:]))
    return found[0], (f"column {found[0]!r} read, though there is {ignored} too",) if ignored else ()


def read_optional(row: Mapping[str, Any], column: str) -> str:
    """Return a column of text, unchanged; the empty string where it is missing or null. Raises RowError where it is not text."""
    return "" if row.get(column) is None else check_string(row[column], column, may_be_empty=True)


def check_messages(value: Any, column: str) -> tuple[Message, ...]:
    """Return a list of messages, each with a known role and text as content, without its null keys at any depth.

    Columnar files give every message the keys of all others, filled with null; templates must not see those. Raises RowError.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        allowed = "a list of messages" if isinstance(value, str) else "text or a list of messages"
        raise RowError(f"column {column!r} must be {allowed}, got {type(value).__name__} {shorten(value)}")
    if not value:
        raise RowError(f"column {column!r} is an empty list; it needs at least one message")
    return tuple(_check_message(message, f"{column}[{index}]") for index, message in enumerate(value))


def _check_message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(f"{place} must be a message such as {{role: user, content: ...}}, got {shorten(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RowError(f"{place} has the role {shorten(role)}; known roles are {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise RowError(f"{place} must have text as its content, got {type(content).__name__} {shorten(content)}")
    return {key: without_nulls(item) for key, item in message.items() if item is not None}


def check_prompt(value: Any, column: str) -> Text:
    """Return a prompt: text that is not blank, or messages of which the last is not the assistant's. Raises RowError."""
    if isinstance(value, str):
        return check_string(value, column)
    messages = check_messages(value, column)
    if messages[-1]["role"] == "assistant":
        raise RowError(
            f"{column} ends with an assistant message; the response comes next, so it must end with another role, such as user"
        )
    return messages


def check_response(value: Any, column: str) -> Text:
    """Return a response: text that is not blank, or a list of one assistant message. Raises RowError."""
    if isinstance(value, str):
        return check_string(value, column)
    messages = check_messages(value, column)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise RowError(f"{column} must be one assistant message, got {shorten(roles)}; the turns before it belong in the prompt")
    check_reply(messages[0], column)
    return messages


def check_reply(message: Message, column: str) -> None:
    """Raise RowError where an assistant's message says nothing: blank content and no tool calls."""
    if not message.get("tool_calls") and not message["content"].strip():
        raise RowError(f"the last message of column {column!r} is empty; it needs text")


def same_kind(prompt: Text, response: Text, column: str) -> None:
    """Raise RowError where one of prompt and response is text and the other messages."""
    kinds = ["text" if isinstance(side, str) else "messages" for side in (prompt, response)]
    if kinds[0] != kinds[1]:
        raise RowError(f"the prompt is {kinds[0]} and column {column!r} is {kinds[1]}; make both text, or both messages")


def check_differ(chosen: Text, rejected: Text, columns: tuple[str, str] = ("chosen", "rejected")) -> None:
    """Raise RowError, with the names of the columns, where both sides of a pair are the same."""
    if chosen == rejected:
        raise RowError(f"{' equals '.join(columns)} ({shorten(chosen)}); a pair needs two different responses")


def check_conversation(value: Any, column: str) -> tuple[Message, ...]:
    """Return messages of which the last is the assistant's, and says something. Raises RowError."""
    messages = check_messages(value, column)
    if messages[-1]["role"] != "assistant":
        raise RowError(f"the last message of column {column!r} must be the assistant's, got role {messages[-1]['role']!r}")
    check_reply(messages[-1], column)
    return messages


def without_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation without the assistant's message at its end, where it has one."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def check_answerable(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Return messages that an answer can follow; `where` says for the error which columns they are from. Raises RowError."""
    if not messages or messages[-1]["role"] == "assistant":
        raise RowError(f"{where} must have a message of another role before the assistant's last: there is nothing to answer")
    return messages


def split_conversation(value: Any, column: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return what comes before the last message, the assistant's, and that message. Raises RowError."""
    messages = check_conversation(value, column)
    if len(messages) == 1:
        raise RowError(f"column {column!r} is one message, the assistant's: there is nothing to answer")
    return messages[:-1], messages[-1:]


def split_pair(
    chosen: Any, rejected: Any, columns: tuple[str, str] = ("chosen", "rejected")
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Return prompt, chosen and rejected of two conversations that differ in their last message, the assistant's.

    Raises RowError, with the names of the columns, where they are something else.
    """
    sides = check_conversation(chosen, columns[0]), check_conversation(rejected, columns[1])
    if sides[0][:-1] != sides[1][:-1]:
        raise RowError(
            f"{' and '.join(columns)} must be the same messages up to the last one, for that is the prompt, and they are not"
        )
    check_differ(sides[0][-1:], sides[1][-1:], columns)
    if len(sides[0]) == 1:
        raise RowError(f"{' and '.join(columns)} are one message each: there is nothing to answer")
    check_prompt(sides[0][:-1], columns[0])
    return sides[0][:-1], sides[0][-1:], sides[1][-1:]


def read_label(row: Mapping[str, Any], column: str) -> tuple[bool, tuple[str, ...]]:
    """Return a boolean column, and a note for the report where 0, 1, 1.0, "true" ... was read as one. Raises RowError."""
    value = read(row, column)
    if isinstance(value, bool):
        return value, ()
    known = _LABELS.get(str(value).lower()) if isinstance(value, (int, float, str)) else None
    if known is None:
        raise RowError(f'column {column!r} must be true or false (0, 1, "true" and "false" will do), got {shorten(value)}')
    return known, (f"labels {value!r} read as {str(known).lower()}",)


def read_number(row: Mapping[str, Any], column: str) -> float:
    """Return a finite number; text that spells one will do, for .csv files have nothing else. Raises RowError."""
    value = read(row, column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"column {column!r} must be a finite number, got {shorten(value)}")
    return number


def read_margin(row: Mapping[str, Any]) -> float | None:
    """Return the column margin, by how much chosen is better; None where there is none. Raises RowError."""
    return None if row.get("margin") is None else read_number(row, "margin")


def read_answers(
    row: Mapping[str, Any], column: str, prompt: Text, *, keys: tuple[str, str] = ("answer", "rank")
) -> list[tuple[float, Text]]:
    """Return the ranks and responses of a list of {answer, rank}, lowest rank first; `keys` are these two keys' names.

    Responses to a prompt of messages are messages. Raises RowError.
    """
    answers = read(row, column)
    if not isinstance(answers, (list, tuple)) or len(answers) < 2:
        raise RowError(f"column {column!r} must be a list of two or more {{{', '.join(keys)}}}, got {shorten(answers)}")
    read_all = [_read_answer(answer, f"{column}[{index}]", prompt, keys) for index, answer in enumerate(answers)]
    return sorted(read_all, key=lambda answer: answer[0])


def _read_answer(answer: Any, place: str, prompt: Text, keys: tuple[str, str]) -> tuple[float, Text]:
    if not isinstance(answer, Mapping) or not set(keys) <= set(answer):
        raise RowError(f"{place} must be {{{', '.join(keys)}}}, got {shorten(answer)}")
    text, rank = answer[keys[0]], read_number(answer, keys[1])
    if isinstance(text, str) and not isinstance(prompt, str):
        text = [{"role": "assistant", "content": text}]
    response = check_response(text, f"{place}.{keys[0]}")
    same_kind(prompt, response, f"{place}.{keys[0]}")
    return rank, response


def read_tools(row: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return the column tools, descriptions for the chat template, as a list or as JSON of one; None where there is none.

    Null keys vanish, as those of messages do. Raises RowError.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        with contextlib.suppress(ValueError):  # what stays text is refused below
            tools = json.loads(tools)
    if tools is not None and tools != "" and not isinstance(tools, (list, tuple)):
        raise RowError(f"column 'tools' must be a list of tool descriptions, got {type(tools).__name__} {shorten(tools)}")
    return without_nulls(list(tools)) if tools else None


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null, at any depth: columnar files give each mapping the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def others(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """Return the columns that the format does not read itself."""
    return {column: value for column, value in row.items() if column not in used}
