"""Plugins that are made in Python instead of named: their settings have the types that a configuration would give them."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, cast

import attrs
import cattrs
from cattrs import AttributeValidationNote

from truing.config.failures import faults_of
from truing.config.faults import Place
from truing.config.reading import Document
from truing.config.structure import setting_of, settings_of, strict_converter

Plugin = TypeVar("Plugin")
_strict_converter = functools.cache(strict_converter)


def check_setting(cls: type, name: str, value: Any) -> None:
    """Raise ValueError, naming what is wrong, for a value that the type of this setting does not take."""
    try:
        _strict_converter().structure(value, cast(Any, setting_of(cls, name).type))
    except (cattrs.StructureHandlerNotFoundError, NameError):  # a type that no YAML can write, or that is not at hand
        return
    except Exception as error:
        faults = faults_of(error, Document(None, {(): Place(0, "")}), (name,))
        raise ValueError("; ".join(map(str, faults))) from None


def checked_settings(plugin: Plugin, converter: cattrs.Converter) -> Plugin:
    """Return the plugin, or one like it, with every setting as the converter reads it: a list as a tuple, NumPy's as Python's.

    Raises cattrs.ClassValidationError with everything that is wrong.
    """
    cls: Any = type(plugin)
    changed: dict[str, Any] = {}
    errors = []
    for field in settings_of(cls):
        given = getattr(plugin, field.name)
        try:
            read = converter.structure(given, cast(Any, field.type))
        except cattrs.StructureHandlerNotFoundError:
            continue
        except Exception as error:
            error.add_note(AttributeValidationNote(f"of {cls.__qualname__}", field.name, field.type))
            errors.append(error)
        else:
            changed |= {} if read is given else {field.alias or field.name: read}
    if errors:
        raise cattrs.ClassValidationError(f"settings of {cls.__qualname__}", errors, cls)
    return attrs.evolve(plugin, **changed) if changed else plugin  # type: ignore[misc]  # a plugin's class is one of attrs
