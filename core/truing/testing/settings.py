"""What every plugin class promises, whatever its kind: it is a class of settings that a configuration can make."""

from __future__ import annotations

import json
from typing import Any

import attrs
import cattrs

from truing.config.structure import settings_of, strict_converter
from truing.errors import PluginError
from truing.registry import Kind
from truing.registry.contract import check_class


def as_settings(kind: Kind, plugin: Any) -> Any:
    """Return the plugin's settings, made with defaults where a class is given.

    Raises AssertionError unless its class is one that the registry accepts, and its settings are the same when they were written
    as a configuration and read again.
    """
    cls = plugin if isinstance(plugin, type) else type(plugin)
    try:
        check_class(kind, cls)
    except PluginError as error:
        raise AssertionError(f"the registry would refuse this plugin: {error}") from error
    required = [field.name for field in attrs.fields(cls) if field.init and field.default is attrs.NOTHING]
    assert plugin is not cls or not required, f"{cls.__name__} needs {', '.join(required)}; pass an instance instead of the class"
    settings = plugin() if plugin is cls else plugin
    _check_round_trip(cls, settings)
    return settings


def _check_round_trip(cls: type, settings: Any) -> None:
    values = {field.name: cattrs.unstructure(getattr(settings, field.name)) for field in settings_of(cls)}
    try:
        read: Any = strict_converter().structure(json.loads(json.dumps(values, default=str)), cls)
    except Exception as error:
        raise AssertionError(
            f"the settings {values} of {cls.__name__} cannot be read from a configuration, for they do not have the types that its "
            f"fields declare: {describe(error)}"
        ) from error
    assert read == settings, (
        f"{cls.__name__} is {settings} and, written as a configuration and read again, {read}; compare by value"
    )


def describe(error: BaseException) -> str:
    """Return what went wrong, the parts of a group one after another."""
    return "; ".join(map(describe, error.exceptions)) if isinstance(error, BaseExceptionGroup) else str(error)
