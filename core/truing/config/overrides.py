"""Overrides from the command line, such as trainer.learning_rate=1e-5 and data.0.path=rows.jsonl."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import attrs

from truing.config.faults import COMMAND_LINE, Fault, KeyPath, dotted, show
from truing.config.reading import MAX_DEPTH, Document, read_value
from truing.errors import ConfigError
from truing.redact import HIDDEN, says_secret

PLUGIN_SLOTS = ("method", "rollout", "data.format", "eval_data.format", "rewards")
"""Where a plain name stands for a mapping with that name."""
ONE_OR_MORE = ("data", "eval_data", "rewards")
"""Where one entry stands for a list of one."""


def override(document: Document, overrides: Sequence[str]) -> Document:
    """Return the document with `key=value` settings laid over it, in order; one that cannot be is a fault.

    Values are read as YAML. A plugin that is only named becomes a mapping when one of its fields is set.
    """
    values = copy.deepcopy(document.values)
    places, faults = dict(document.places), list(document.faults)
    for text in overrides:
        key, equals, value = text.partition("=")
        try:
            if not equals or not all(key.split(".")) or key.count(".") > MAX_DEPTH:
                raise ConfigError(f"{show(text)} is not an override; write key=value, such as trainer.learning_rate=1e-5")
            path = _set(values, key.split("."), _read(key, value))
        except ConfigError as error:
            faults.append(Fault(COMMAND_LINE, str(error)))
        else:
            kept = {place: where for place, where in places.items() if place[: len(path)] != path}
            places = {path[:depth]: COMMAND_LINE for depth in range(1, len(path) + 1)} | kept
    return attrs.evolve(document, values=values, places=places, faults=faults)


def _read(key: str, text: str) -> Any:
    try:
        return read_value(text)
    except ConfigError as error:
        problem = str(error).removeprefix(f"{COMMAND_LINE.text}:1: ")
        shown = HIDDEN if says_secret(key.rpartition(".")[2]) else show(text)
        raise ConfigError(f"the value {shown} of {key} cannot be read: {problem}") from None


def _set(at: Any, keys: Sequence[str], value: Any, path: KeyPath = ()) -> KeyPath:
    """Set one key in place; return its path with list indices as numbers and without a 0 that names the only entry."""
    index = _index(at, keys[0], path)
    path, rest = (*path, index), keys[1:]
    current = at.get(index) if isinstance(at, dict) else at[index]
    if rest[:1] == ["0"] and dotted(path) in ONE_OR_MORE and not isinstance(current, list):
        rest = rest[1:]
    if not rest:
        at[index] = value
        return path
    at[index] = _container(current, path, rest[0])
    return _set(at[index], rest, value, path)


def _index(at: Any, key: str, path: KeyPath) -> str | int:
    if isinstance(at, dict):
        return key
    if key.isdecimal() and len(key) < 6 and int(key) < len(at):
        return int(key)
    entries = f"entries 0 to {len(at) - 1}" if at else "no entries"
    example = dotted((*path, 0, key) if not key.isdecimal() and at else (*path, 0))
    raise ConfigError(f"{dotted(path)} is a list with {entries}, and {key!r} is none of them; say which, such as {example}=...")


def _container(value: Any, path: KeyPath, key: str) -> dict[str, Any] | list[Any]:
    """Return what `key` can be set in, in the place of a value: itself, a new mapping, or a plugin's name as a mapping."""
    if isinstance(value, (dict, list)):
        return value
    if value is None:
        return {}
    if isinstance(value, str) and ".".join(part for part in path if isinstance(part, str)) in PLUGIN_SLOTS:
        return {"name": value}
    raise ConfigError(f"{dotted(path)} is {show(value)}, which has no key {key!r}; to replace it, write {dotted(path)}=...")
