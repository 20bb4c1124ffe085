"""YAML text to plain values, with the line of every key.

The scalars are those of YAML 1.2's core schema: 1e-3 is a float, `no` and `on` are strings. What a configuration does not need
(tags, several documents, merge keys) is refused, and so is what would take long or much memory: text over 250 kB, deep nesting,
aliases that multiply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from truing.config.faults import COMMAND_LINE, Fault, KeyPath, Place
from truing.errors import ConfigError

MAX_BYTES = 250_000
MAX_DEPTH = 50
MAX_VALUES = 10_000

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")  # what 64 bits hold
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def scalar(text: str) -> Scalar:
    """Return what unquoted text means in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


@attrs.frozen
class Document:
    """What was read: plain values, the place of every key, and the faults that did not stop the reading."""

    values: Any
    places: dict[KeyPath, Place]
    faults: list[Fault] = attrs.field(factory=list)
    unresolved: frozenset[KeyPath] = frozenset()
    """Values that are null because their interpolation failed."""

    def place(self, path: KeyPath) -> Place:
        """Return where a key, or else the innermost mapping around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]


def read_file(path: Path) -> Document:
    """Read a configuration file; its top level is a mapping. Raises ConfigError."""
    document = read_text(file_text(path), str(path))
    if document.values is None:
        raise ConfigError(f"{path} is empty; a configuration has at least method, model, data and output")
    if not isinstance(document.values, Mapping):
        raise ConfigError(f"{path}: the top level must be a mapping of keys such as method: and model:, not a list or one value")
    return document


def file_text(path: Path) -> str:
    """Return the text of a configuration file. Raises ConfigError when it cannot be read, is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes; a configuration is a few lines of YAML")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def read_text(text: str, name: str) -> Document:
    """Read YAML text that `name` says the origin of. Raises ConfigError where it cannot be read on."""
    composer = _Composer(name)
    root = composer.compose(text)
    places: dict[KeyPath, Place] = {(): Place(0, name)}
    values = None if root is None else _Expansion(name, places).expand(root, ())
    return Document(values, places, composer.faults)


def read_value(text: str) -> Any:
    """Read the value of an override by the same rules. Raises ConfigError."""
    document = read_text(text, COMMAND_LINE.text)
    for fault in document.faults:
        raise ConfigError(str(fault))
    return document.values


@attrs.frozen
class _Node:
    """A scalar, a list of nodes, or a mapping of nodes; the line of a mapping's value is that of its key."""

    line: int
    value: Scalar | list[_Node] | dict[str, _Node]


class _Composer:
    """Makes nodes of a parser's events, refusing early what a configuration cannot be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[Fault] = []
        self._anchors: dict[str, _Node] = {}
        self._count = 0

    def compose(self, text: str) -> _Node | None:
        """Return the root of the only document; None when there is none."""
        root = None
        events = self._events(text)
        for event in events:
            if isinstance(event, DocumentStartEvent) and root is not None:
                self._refuse(event, "a second document begins here; a configuration is one document, so remove the ---")
            if isinstance(event, NodeEvent):
                root = self._node(event, events, depth=1)
        return root

    def _events(self, text: str) -> Iterator[Event]:
        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{self.name}:{line}: character #x{error.character:04x} is not allowed in YAML; remove it") from None
        except MarkedYAMLError as error:
            mark = error.context_mark or error.problem_mark  # the former is where an open quote or bracket began
            raise ConfigError(f"{self.name}:{mark.line + 1}: {_in_words(error)}") from None
        except (YAMLError, ValueError, OverflowError) as error:  # the latter two for numbers in escapes and directives
            raise ConfigError(f"{self.name}: not YAML: {error}") from None

    def _node(self, event: NodeEvent, events: Iterator[Event], depth: int) -> _Node:
        self._count += 1
        if depth > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_VALUES:
            self._refuse(event, f"more than {MAX_VALUES:,} values; a configuration is a few lines of YAML")
        if isinstance(event, AliasEvent):
            return self._anchored(event)
        assert isinstance(event, (ScalarEvent, CollectionStartEvent))
        if event.tag is not None:
            self._refuse(event, f"the tag {event.tag} is not allowed; write the plain value, in quotes if it is text")
        node = _Node(event.start_mark.line + 1, self._value(event, events, depth))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _anchored(self, event: AliasEvent) -> _Node:
        if event.anchor not in self._anchors:
            self._refuse(event, f"the alias *{event.anchor} has no anchor &{event.anchor} before it; put text with a * in quotes")
        return attrs.evolve(self._anchors[event.anchor], line=event.start_mark.line + 1)

    def _value(self, event: NodeEvent, events: Iterator[Event], depth: int) -> Scalar | list[_Node] | dict[str, _Node]:
        if isinstance(event, SequenceStartEvent):
            return [self._node(item, events, depth + 1) for item in _children(events)]
        if isinstance(event, MappingStartEvent):
            return self._mapping(events, depth)
        assert isinstance(event, ScalarEvent)
        text = self._text(event)
        return scalar(text) if event.implicit[0] else text

    def _mapping(self, events: Iterator[Event], depth: int) -> dict[str, _Node]:
        nodes: dict[str, _Node] = {}
        for event in _children(events):
            key, line = self._key(event), event.start_mark.line + 1
            node = self._node(next(events), events, depth + 1)  # type: ignore[arg-type]  # a value follows every key
            if key in nodes:
                message = f"{key} is given twice, here and in line {nodes[key].line}; remove one"
                self.faults.append(Fault(Place(line, f"{self.name}:{line}"), message))
            else:
                nodes[key] = attrs.evolve(node, line=line)
        return nodes

    def _key(self, event: NodeEvent) -> str:
        if not isinstance(event, ScalarEvent):
            self._refuse(event, "a key must be a plain name, not a list, a mapping or an alias; put {{ }} in quotes")
        if event.value == "<<" and event.implicit[0]:
            self._refuse(event, "merge keys (<<) are not part of YAML 1.2; repeat the keys, or alias the whole mapping")
        return self._text(event)

    def _text(self, event: ScalarEvent) -> str:
        """Return the text of a scalar; JSON writes characters beyond 16 bits as two escapes, which are one character here."""
        try:
            return str(event.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(
                event, r"an escape from \ud800 to \udfff stands alone, which is half a character; write the character itself"
            )

    def _refuse(self, event: Event, message: str) -> NoReturn:
        raise ConfigError(f"{self.name}:{event.start_mark.line + 1}: {message}")


def _children(events: Iterator[Event]) -> Iterator[NodeEvent]:
    """Yield the first event of each child up to the end of the collection; the caller consumes the rest of the child."""
    while isinstance(event := next(events), NodeEvent):
        yield event


def _in_words(error: MarkedYAMLError) -> str:
    if "\\t" in str(error.problem):
        return f"line {error.problem_mark.line + 1} has a tab where YAML takes only spaces; replace it by spaces"
    end = f" in line {error.problem_mark.line + 1}" if error.context else ""
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    advice = "put ${...} in quotes within [ ] and { }" if "got '{'" in problem else "check quotes, brackets and indentation"
    return f"not YAML: {problem}{end}; {advice}"


@attrs.frozen
class _Expansion:
    """Turns nodes into plain values, a fresh copy for every alias, and notes every key's place."""

    name: str
    places: dict[KeyPath, Place]

    def expand(self, node: _Node, path: KeyPath) -> Any:
        """Return the value of a node. Raises ConfigError when aliases multiply it beyond the limit."""
        if len(self.places) > MAX_VALUES:
            raise ConfigError(f"{self.name}:{node.line}: aliases (*) make more than {MAX_VALUES:,} values of this; use fewer")
        if path:
            self.places[path] = Place(node.line, f"{self.name}:{node.line}")
        if isinstance(node.value, dict):
            return {key: self.expand(child, (*path, key)) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [self.expand(child, (*path, index)) for index, child in enumerate(node.value)]
        return node.value
