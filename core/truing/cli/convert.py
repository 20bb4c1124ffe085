"""The command `truing convert`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from truing.dialect import Dialect
    from truing.registry import Registry


@click.command()
@click.argument("dialect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this new file instead of printing.")
def convert(dialect: str, file: Path, output: Path | None) -> None:
    """Print FILE, another tool's YAML or JSON, as a configuration of ours. DIALECT says whose it is."""
    from truing.dialect import translated_yaml
    from truing.registry import Registry

    registry = Registry.load()
    reader = _dialect(dialect, registry)
    values = _read(file)
    folder = output.absolute().parent if output else Path.cwd()
    try:
        text = translated_yaml(reader, values, registry=registry, base_dir=folder)
    except (ConfigError, PluginError) as error:
        raise type(error)(f"{file}: {error}") from error
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(text, output)


def _dialect(name: str, registry: Registry) -> Dialect:
    if not registry.names("dialect") and not registry.claims("dialect", name):
        raise PluginError(
            f"no dialect is installed, so {name!r} cannot be read; a plugin registers one with the hook register_dialect"
        )
    dialect: Dialect = registry.get("dialect", name)()
    return dialect


def _read(path: Path) -> Mapping[str, Any]:
    from truing.config.faults import raise_faults
    from truing.config.reading import file_text, read_text

    document = read_text(file_text(path), str(path))
    raise_faults(document.faults)
    if not isinstance(document.values, Mapping):
        found = "a list" if isinstance(document.values, list) else "empty" if document.values is None else "one value"
        raise ConfigError(f"{path} is {found}; its top level must be a mapping of the other tool's keys")
    return document.values


def _write(text: str, path: Path) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists, and is not overwritten; remove it, or choose another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
