"""Faults in a configuration: where they are, what they say, and raising all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from truing.errors import ConfigError, PluginError
from truing.redact import redact

MAX_LISTED = 100

KeyPath: TypeAlias = tuple[str | int, ...]
"""The keys and indices that lead to a value: ("data", 0, "path")."""


@attrs.frozen
class Place:
    """Where a value was written. Places sort by line; the command line comes last."""

    line: float
    text: str
    """What a message begins with: "run.yaml:12", "command line", or nothing for values that come from Python."""


COMMAND_LINE = Place(float("inf"), "command line")


@attrs.frozen
class Fault:
    """One thing that is wrong."""

    place: Place
    message: str
    missing_plugin: bool = False

    def __str__(self) -> str:
        return f"{self.place.text}: {self.message}" if self.place.text else self.message


class WrongValueError(ValueError):
    """A value that its key does not take. The message is a predicate, such as "must be an int, got 3.7"."""


def dotted(path: KeyPath) -> str:
    """Return a path as overrides write it: data.0.path."""
    return ".".join(map(str, path))


def show(value: object) -> str:
    """Return a value for a message: in YAML's words, strings in quotes, mappings and lists by their kind, nothing long."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = redact(_repr(value))  # before it is cut, for the beginning of a secret is not found
    return text if len(text) <= 60 else f"{text[:57]}..."


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python refuses to print an int of more than 4,300 digits
        return f"an int of {value.bit_length()} bits"


def raise_faults(faults: Iterable[Fault]) -> None:
    """Raise what was found, sorted by line, if anything was.

    Raises PluginError when only plugins are missing, else ConfigError.
    """
    found = sorted(faults, key=lambda fault: fault.place.line)
    if not found:
        return
    error = PluginError if all(fault.missing_plugin for fault in found) else ConfigError
    raise error(_listed(found))


def _listed(faults: Sequence[Fault]) -> str:
    lines = list(dict.fromkeys(map(str, faults)))
    if len(lines) == 1:
        return lines[0]
    more = [f"  and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n".join([f"{len(lines)} faults:", *(f"  {line}" for line in lines[:MAX_LISTED]), *more])
