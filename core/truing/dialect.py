"""A dialect: another tool's configuration, as the values of one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from truing.errors import ConfigError, PluginError, TruingError

if TYPE_CHECKING:
    from truing.registry import Registry


class Dialect(Protocol):
    """Reads another tool's configuration: an attrs class of settings, each with a default."""

    name: ClassVar[str]

    def translate(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of a Truing configuration, of YAML's own types, that say what `values` say.

        Raises truing.ConfigError that names every key that it cannot translate, nested ones too: nothing is dropped silently. Never
        mutates `values`.
        """


def translated_yaml(dialect: Dialect, values: Mapping[str, Any], *, registry: Registry, base_dir: Path = Path()) -> str:
    """Return the YAML that a dialect makes of another tool's values; loading it in `base_dir` gives a configuration.

    Raises ConfigError for what the dialect cannot translate, and with every fault of what it made; PluginError when it fails.
    """
    from ruamel.yaml.error import YAMLError

    from truing.config import build_config, dump_config
    from truing.config.interpolation import interpolate
    from truing.config.reading import read_text

    ours = _translated(dialect, values)
    try:
        text = dump_config(ours)
    except YAMLError as error:
        raise PluginError(f"dialect {dialect.name!r} returned what YAML cannot hold: {error}") from None
    try:
        build_config(interpolate(read_text(text, dialect.name)).values, registry=registry, base_dir=base_dir)
    except (ConfigError, PluginError) as error:
        raise type(error)(f"what dialect {dialect.name!r} makes of it is not a valid configuration: {error}") from error
    return text


def _translated(dialect: Dialect, values: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        ours = dialect.translate(values)
    except TruingError:
        raise
    except Exception as error:
        raise PluginError(
            f"dialect {dialect.name!r} failed ({type(error).__name__}: {error}); report it to its authors: `truing plugins` says "
            "which distribution it is from"
        ) from error
    if not isinstance(ours, Mapping):
        raise PluginError(f"dialect {dialect.name!r} returned {type(ours).__name__}; `translate` returns a mapping")
    return ours
