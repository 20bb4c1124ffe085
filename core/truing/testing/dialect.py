"""The check that a dialect runs in its own tests."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from truing.dialect import Dialect, translated_yaml
from truing.errors import ConfigError, TruingError
from truing.registry import Registry
from truing.testing.settings import as_settings

UNKNOWN = {"key_of_no_tool": 1, "nor_this": 2}


def check_dialect(dialect: Dialect | type[Dialect], values: Mapping[str, Any], *, registry: Registry | None = None) -> None:
    """Check that a dialect makes a valid configuration of `values`, and refuses keys that it does not know, wherever they stand.

    `dialect` is a class, taken with its default settings, or an instance; `values` a configuration of its tool with everything
    that it reads. `registry` has the plugins that the translated configuration names: by default those that are installed. Raises
    AssertionError that says which promise is broken and what to do.
    """
    reader = as_settings("dialect", dialect)
    name, before = type(reader).__name__, copy.deepcopy(values)
    known = Registry.load(quiet=True) if registry is None else registry
    try:
        text = translated_yaml(reader, values, registry=known)
    except TruingError as error:
        raise AssertionError(f"{name}.translate does not make a valid configuration of {values}: {error}") from error
    assert values == before, f"{name}.translate changes the values that it is given; copy them first"
    assert translated_yaml(reader, values, registry=known) == text, (
        f"{name}.translate makes two configurations of the same values when it is called twice; it must repeat itself"
    )
    for extended in _extended(values):
        _check_refuses(reader, extended)


def _extended(value: Any) -> Iterator[Any]:
    """Yield copies of a value, each with unknown keys in another one of the mappings in it."""
    if isinstance(value, Mapping):
        yield {**value, **UNKNOWN}
        for key, item in value.items():
            yield from ({**value, key: changed} for changed in _extended(item))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ([*value[:index], changed, *value[index + 1 :]] for changed in _extended(item))


def _check_refuses(dialect: Any, values: Mapping[str, Any]) -> None:
    name = type(dialect).__name__
    advice = "raise truing.ConfigError that names every key that it cannot translate"
    try:
        dialect.translate(values)
    except ConfigError as error:
        unnamed = [key for key in UNKNOWN if key not in str(error)]
        assert not unnamed, f"{name}.translate refuses {values} without naming {', '.join(unnamed)}: {str(error)!r}; {advice}"
        return
    except Exception as error:
        raise AssertionError(f"{name}.translate fails on {values} with {type(error).__name__}: {error}; {advice}") from error
    raise AssertionError(f"{name}.translate drops {', '.join(UNKNOWN)} of {values}; {advice}")
