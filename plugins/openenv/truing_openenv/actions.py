"""From what a policy wrote to an action of the environment's schema."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import attrs

from truing.errors import ConfigError
from truing_openenv.protocol import InvalidActionError
from truing_openenv.schema import Schema

Find: TypeAlias = Callable[[str], Iterator[Any]]
"""Yields the values that a text has, in their order there."""

_NUMBER = re.compile(r"(?:(?<![\w.])-)?\d{1,30}(?:\.\d{1,30})?")
_TRUTH = {"true": True, "yes": True, "false": False, "no": False}
_DECODER = json.JSONDecoder()


@attrs.frozen
class ActionReader:
    """Reads the action in a text: the value of one field, or a JSON object with all of them."""

    schema: Schema
    field: str | None
    """The field that the text gives; None for a JSON object."""

    @classmethod
    def of(cls, schema: Schema, field: str | None) -> ActionReader:
        """Return the reader for a schema. Raises ConfigError for a field that is not there or does not make an action alone."""
        fields = schema.fields
        if field is None:
            return cls(schema, next(iter(fields)) if len(fields) == 1 else None)
        if field not in fields:
            raise ConfigError(f"rollout.action_field is {field!r}; the fields of an action here are {', '.join(fields) or 'none'}")
        missing = [name for name in schema.required if name != field]
        if missing:
            raise ConfigError(
                f"rollout.action_field is {field!r}, and an action needs {', '.join(missing)} too; leave action_field out, and let "
                "the policy write a JSON object"
            )
        return cls(schema, field)

    @property
    def about(self) -> str:
        """What is read, in words."""
        found = f"the last {self._kind[0]} of the text" if self._kind[1] is not _whole else "the text"
        return found if self.field is None else f"`{self.field}`: {found}"

    @cached_property
    def _kind(self) -> tuple[str, Find]:
        """What is looked for, in words, and what finds it."""
        if self.field is None:
            return f"JSON object with {', '.join(self.schema.fields) or 'nothing'}", _objects
        return _kind(self.schema.fields[self.field])

    def __call__(self, text: str) -> dict[str, Any]:
        """Return the action. Raises InvalidActionError, with what to write instead, where there is none in the text."""
        what, find = self._kind
        found = next(iter(deque(find(text), maxlen=1)), None)  # the last one
        if found is None:
            raise InvalidActionError(f"there is no {what} in it")
        return found if self.field is None else {self.field: found}


def _kind(schema: Mapping[str, Any]) -> tuple[str, Find]:
    choices, type_ = schema.get("enum"), schema.get("type")
    if isinstance(choices, list) and choices:
        by_word = {str(choice).lower(): choice for choice in choices}
        return f"word of {', '.join(map(str, choices))}", lambda text: _words(text, by_word)
    kinds: dict[Any, tuple[str, Find]] = {
        "integer": ("number", _numbers),
        "number": ("number", _numbers),
        "boolean": ("word of true, false", lambda text: _words(text, _TRUTH)),
        "object": ("JSON object", _objects),
        "array": ("JSON list", _lists),
    }
    return kinds.get(type_, ("text", _whole))


def _whole(text: str) -> Iterator[Any]:
    if text.strip():
        yield text.strip()


def _numbers(text: str) -> Iterator[Any]:
    for number in _NUMBER.findall(text):
        yield float(number) if "." in number else int(number)


def _words(text: str, by_word: Mapping[str, Any]) -> Iterator[Any]:
    longest_first = sorted(by_word, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    for word in re.findall(pattern, text.lower()):
        yield by_word[word]


def _objects(text: str) -> Iterator[Any]:
    return _json_values(text, "{")


def _lists(text: str) -> Iterator[Any]:
    return _json_values(text, "[")


def _json_values(text: str, opening: str) -> Iterator[Any]:
    """Yield the JSON values in a text that begin with a bracket and are not within another."""
    start = text.find(opening)
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if _is_json(value):
                yield value
        start = text.find(opening, end)


def _is_json(value: Any) -> bool:
    """Return whether a value has no NaN or infinity, which Python reads and JSON has not."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    return all(map(_is_json, value)) if isinstance(value, list) else True
