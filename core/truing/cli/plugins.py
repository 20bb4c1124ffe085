"""`truing plugins`: what is installed, what it contributes, and what is broken and why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import attrs
import click

from truing.errors import PluginError
from truing.registry import KIND_WORDS, PluginInfo, Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ("Distribution", "Version", "Plugin", "Hooks", "Names", "Status")
STYLES = {"ok": None, "broken": "red", "blocked": "yellow"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.option("--check", is_flag=True, help="Exit 3 when a plugin is broken.")
def plugins(as_json: bool, check: bool) -> None:
    """List the plugins: what they contribute, what is broken and why."""
    found = Registry.load(quiet=True).plugins
    if as_json:
        click.echo(json.dumps([as_object(info) for info in found], indent=2))
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        click.echo("\n".join("\t".join(row) for row in (COLUMNS, *map(_row, found))))
    broken = [info.label for info in found if info.status == "broken"]
    if check and broken:
        raise PluginError(f"broken: {', '.join(broken)}; the list above says why")


def as_object(info: PluginInfo) -> dict[str, Any]:
    """Return what `--json` prints of a plugin."""
    return {**attrs.asdict(info, filter=attrs.filters.exclude("blocked")), "status": info.status}


def _row(info: PluginInfo) -> tuple[str, ...]:
    status = f"{info.status}: {info.problem}" if info.problem else info.status
    return info.dist, info.version, info.name, ", ".join(info.hooks), _names(info), status


def _names(info: PluginInfo) -> str:
    names = [f"{KIND_WORDS[kind]}s: {', '.join(known)}" for kind, known in info.names.items()]
    names += [f"commands: {', '.join(info.commands)}"] if info.commands else []
    return "; ".join(names)


def _print_table(found: Sequence[PluginInfo]) -> None:
    """Print a table that fits a narrow terminal: what is wrong, which may be long, follows below."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in COLUMNS:
        if column != "Hooks":
            table.add_column(column, no_wrap=column != "Names", overflow="fold")
    for info in found:
        table.add_row(info.dist, info.version, info.name, _names(info), info.status, style=STYLES[info.status])
    console = Console(markup=False, highlight=False)
    console.print(table)
    for info in found:
        if info.problem:
            console.print(f"{info.label} is {info.status}: {info.problem}", style=STYLES[info.status])
