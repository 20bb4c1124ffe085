"""Replaces ${output.dir}, ${oc.env:HOME} and omegaconf's other interpolations by their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import attrs

from truing.config.faults import Fault, KeyPath, dotted
from truing.config.reading import Document
from truing.redact import redact

if TYPE_CHECKING:
    from omegaconf import DictConfig

MAX_INTERPOLATIONS = 200
MAX_ROUNDS = 10
MAX_VALUES = 1_000
MAX_LENGTH = 100_000


def interpolate(document: Document) -> Document:
    """Return the document with every interpolation resolved; what cannot be resolved is null, and a fault.

    Each round resolves those that refer to no unresolved one, so that values which refer to each other take a bounded time.
    """
    texts = dict(_interpolations(document.values, ()))
    if not texts:
        return document
    faults = list(document.faults)
    if sum(text.count("${") for text in texts.values()) > MAX_INTERPOLATIONS:
        faults.append(Fault(document.places[()], f"more than {MAX_INTERPOLATIONS} interpolations ${{...}}; write the values"))
        return _without(document, texts, document.values, faults)
    resolver = _Resolver(_replaced(document.values, dict.fromkeys(texts, "???")))
    for _ in range(MAX_ROUNDS):
        texts = {path: text for path, text in texts.items() if not resolver.resolve(path, text)}
    problems = {**resolver.problems, **dict.fromkeys(texts, "refers to itself, or to something that is never resolved")}
    faults += [Fault(document.place(path), f"{dotted(path)}: {problem}") for path, problem in problems.items()]
    return _without(document, problems, _replaced(document.values, resolver.resolved), faults)


def _without(document: Document, unresolved: Iterable[KeyPath], values: Any, faults: list[Fault]) -> Document:
    values = _replaced(values, dict.fromkeys(unresolved))
    return attrs.evolve(document, values=values, faults=faults, unresolved=frozenset(unresolved))


class _Resolver:
    """Resolves one interpolation after another against the values that are known so far."""

    def __init__(self, values: dict[str, Any]) -> None:
        from omegaconf import OmegaConf

        self.config = OmegaConf.create(values)
        self.resolved: dict[KeyPath, Any] = {}
        self.problems: dict[KeyPath, str] = {}
        self._size = 0

    def resolve(self, path: KeyPath, text: str) -> bool:
        """Note the value or the problem of one interpolation; return False if it refers to one that is not resolved yet."""
        from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

        if self._size > MAX_VALUES:
            self.problems[path] = f"interpolations make more than {MAX_VALUES:,} values; refer to smaller parts"
            return True
        parent: Any = self._parent(path)
        try:
            parent[path[-1]] = text
            value = _plain(parent[path[-1]])
        except InterpolationToMissingValueError:
            parent[path[-1]] = "???"
            return False
        except (OmegaConfBaseException, ValueError, RecursionError) as error:
            parent[path[-1]] = "???"
            self.problems[path] = (
                f"{redact(text)[:80]!r} cannot be resolved: {str(error).splitlines()[0]}; \\${{ stands for a plain ${{"
            )
            return True
        return self._note(path, parent, value)

    def _parent(self, path: KeyPath) -> DictConfig:
        parent = self.config
        for key in path[:-1]:
            parent = cast("DictConfig", parent._get_node(key))
        return parent

    def _note(self, path: KeyPath, parent: DictConfig, value: Any) -> bool:
        waiting = any(leaf == "???" for _, leaf in leaves(value))
        self._size += sum(1 for _ in leaves(value))
        if isinstance(value, str) and len(value) > MAX_LENGTH:
            self.problems[path] = f"the interpolated text is longer than {MAX_LENGTH:,} characters"
            waiting = False
        elif not waiting:
            self.resolved[path] = value
        # a literal ${ would be resolved once more by whatever refers to it
        parent[path[-1]] = "???" if path not in self.resolved or any(_interpolations(value, ())) else value
        return not waiting


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value that is no mapping or list, with the keys that lead to it."""
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))
    else:
        yield path, value


def _interpolations(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    return ((where, leaf) for where, leaf in leaves(value, path) if isinstance(leaf, str) and "${" in leaf)


def _replaced(value: Any, new: dict[KeyPath, Any], path: KeyPath = ()) -> Any:
    """Return a copy of nested values with those at the given paths replaced."""
    if path in new:
        return new[path]
    if isinstance(value, dict):
        return {key: _replaced(child, new, (*path, key)) for key, child in value.items()}
    if isinstance(value, list):
        return [_replaced(child, new, (*path, index)) for index, child in enumerate(value)]
    return value
