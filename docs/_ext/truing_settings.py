"""Sphinx directives that make the configuration's reference out of its classes and of the installed plugins.

`{settings} module:Class` makes the table of one class, `{plugins} kind` a table for each plugin of a kind, `{methods}` the table of
`truing methods`, `{other-tools}` that of what other tools call otherwise.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import attrs
from sphinx.util.docutils import SphinxDirective

from truing.cli.methods import COLUMNS, Method, cells, installed
from truing.config.dump import plain
from truing.config.failures import OTHER_TOOLS
from truing.config.structure import describe_type, settings_of
from truing.registry import Kind, Registry
from truing.registry.first_party import OTHER_TOOLS as OTHER_NAMES
from truing.settings import describe_bounds


def describe_default(field: attrs.Attribute[Any]) -> str:
    """Return a setting's default as the YAML has it."""
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]  # a class, which the stubs call a function
        return "`{}`" if field.default.factory is dict else "that of each key"
    value = plain(field.default)
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def settings_table(cls: type) -> list[str]:
    """Return a Markdown table with a row for each setting of a class."""
    rows = []
    for field in settings_of(cls):
        if "help" not in field.metadata:  # a reward stands in its entry by name, not under a key
            continue
        allowed = " ".join(filter(None, (describe_type(field.type), describe_bounds(field))))
        cells = (f"`{field.name}`", allowed, describe_default(field), field.metadata["help"])
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return ["| key | value | default | meaning |", "|---|---|---|---|", *rows] if rows else ["It has no settings."]


def plugin_section(cls: Any, owner: str) -> Iterator[str]:
    """Yield the Markdown of one plugin: its name, where it comes from, what it is, its settings."""
    layouts = sorted(layout.value for layout in getattr(cls, "layouts", [cls.layout] if hasattr(cls, "layout") else []))
    yield f"**`{cls.name}`**, from `{owner}`{f', for {chr(44).join(layouts)} data' if layouts else ''}"
    yield ""
    yield (inspect.getdoc(cls) or "").partition("\n")[0]
    yield ""
    yield from settings_table(cls)
    yield ""


class Markdown(SphinxDirective):
    """A directive whose result is Markdown."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """Return the Markdown."""
        raise NotImplementedError

    def run(self) -> list[Any]:
        """Parse it in place."""
        return self.parse_text_to_nodes("\n".join(self.lines()))


class Settings(Markdown):
    """`{settings} module:Class`: the settings of a class."""

    def lines(self) -> list[str]:
        """Return the class's first line and its table."""
        module, _, name = self.arguments[0].partition(":")
        cls = getattr(importlib.import_module(module), name)
        return [(inspect.getdoc(cls) or "").partition("\n")[0], "", *settings_table(cls)]


class Plugins(Markdown):
    """`{plugins} kind`: every plugin of a kind."""

    def lines(self) -> list[str]:
        """Return a section for each class."""
        registry, kind = Registry.load(), cast("Kind", self.arguments[0])
        owners = {name: info.dist for info in registry.plugins for name in info.names.get(kind, ())}
        return [line for cls in registry.classes(kind) for line in plugin_section(cls, owners[cls.name])]


class Methods(Markdown):
    """`{methods}`: the table that `truing methods` prints, with links."""

    required_arguments = 0

    def lines(self) -> list[str]:
        """Return the table."""
        return methods_table(installed(Registry.load()))


def methods_table(found: Sequence[Method]) -> list[str]:
    """Return a Markdown table with a row for each method."""
    rows = []
    for method in found:
        name, *others, _ = cells(method)
        papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in method.papers)
        rows.append(f"| `{name}` | {' | '.join(others)} | {papers} |")
    return [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *rows]


class OtherTools(Markdown):
    """`{other-tools}`: keys, names and values of other tools, and what they are here."""

    required_arguments = 0

    def lines(self) -> list[str]:
        """Return the table."""
        return other_tools_table(Registry.load())


def other_tools_table(registry: Registry) -> list[str]:
    """Return a Markdown table with a row for each key, name and value that the program knows of other tools."""
    rows = [(f"`{key}`", f"`{here}`") for key, here in OTHER_TOOLS.items()]
    for cls in registry.classes("loss"):
        for field in settings_of(cls):
            rows += [(f"`{name}`, for `{cls.name}`", f"`method.{field.name}`") for name in field.metadata.get("also", ())]
            instead = field.metadata.get("instead", {}).items()
            rows += [(f"`{field.name}: {value}`, for `{cls.name}`", f"`{here}`") for value, here in instead]
    rows += [(f"the method `{name}`", f"`{here}`") for name, here in OTHER_NAMES["loss"].items()]
    return ["| elsewhere | here |", "|---|---|", *(f"| {elsewhere} | {here} |" for elsewhere, here in rows)]


def setup(app: Any) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("settings", Settings)
    app.add_directive("plugins", Plugins)
    app.add_directive("methods", Methods)
    app.add_directive("other-tools", OtherTools)
    return {"parallel_read_safe": True}
