"""`truing methods`: which methods are installed, what data each of them takes, and which models it holds."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import click

from truing.declared import all_needs
from truing.loss import Layout, Loss, Needs
from truing.registry import Registry
from truing.registry.contract import required_settings

ROWS: Mapping[Layout, str] = {
    Layout.SINGLE: "completions",
    Layout.PAIRED: "pairs of a chosen and a rejected answer",
    Layout.RANKED: "answers in order",
    Layout.LABELED: "answers with a label, good or bad",
    Layout.ROLLOUT: "prompts; it samples the answers",
}
"""What a row of data has beside its prompt, by layout."""
COLUMNS = ("Method", "Data", "Models", "Memory", "Definition", "Papers")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@attrs.frozen(kw_only=True)
class Method:
    """A row of the table, from the method's class and its default settings."""

    name: str
    package: str
    data: str
    models: str
    memory: str
    definition: str
    papers: tuple[str, ...]
    """Numbers on arXiv."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
def methods(as_json: bool) -> None:
    """List the methods: the data that each takes, the models that it holds, what it is, and its papers."""
    found = installed(Registry.load(quiet=True))
    if as_json:
        click.echo(json.dumps([attrs.asdict(method) for method in found], indent=2))
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        click.echo("\n".join("\t".join(row) for row in (COLUMNS, *map(cells, found))))


def cells(method: Method) -> tuple[str, ...]:
    """Return what the table has under its columns."""
    papers = ", ".join(f"arXiv:{paper}" for paper in method.papers)
    return method.name, method.data, method.models, method.memory, method.definition, papers


def installed(registry: Registry) -> list[Method]:
    """Return the installed methods, those of like data together."""
    owners = {name: info.dist for info in registry.plugins for name in info.names.get("loss", ())}
    order = list(ROWS)
    classes = sorted(registry.classes("loss"), key=lambda cls: (order.index(cls.layout), cls.name))
    return [_method(cls, owners[cls.name]) for cls in classes]


def _method(cls: type[Loss], package: str) -> Method:
    text = inspect.getdoc(cls) or ""
    models, memory = _models_and_memory(cls)
    return Method(
        name=cls.name,
        package=package,
        data=ROWS[cls.layout],
        models=models,
        memory=memory,
        definition=_ARXIV.sub("", text.partition("\n")[0]).replace(", )", ")").replace(" ()", ""),
        papers=tuple(dict.fromkeys(_ARXIV.findall(text))),
    )


_MODELS: Mapping[Needs, str] = {
    Needs.REFERENCE_LOGPS: "reference",
    Needs.VALUES: "value head",
    Needs.SCORES: "score head",
}
"""What a run holds beside the policy for what a method needs."""


def _models_and_memory(cls: type[Loss]) -> tuple[str, str]:
    """Return the models that a method holds with its default settings, and what they take."""
    if required_settings(cls):
        return "policy, more by its settings", "1 x the model, more by its settings"
    method: Any = cls()
    needs = all_needs(method)
    memory = "2 x the model, 1 x with an adapter" if Needs.REFERENCE_LOGPS in needs else "1 x the model"
    return ", ".join(["policy", *(word for need, word in _MODELS.items() if need in needs)]), memory


def _print_table(found: Sequence[Method]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column == "Method", overflow="fold")
    for method in found:
        table.add_row(*cells(method))
    Console(markup=False, highlight=False).print(table)
