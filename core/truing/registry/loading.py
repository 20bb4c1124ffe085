"""Loads one plugin: finds its hooks, calls each once, and checks what they return. Nothing that it does can stop the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from email.message import Message
from importlib import metadata
from typing import Any, Literal

import attrs
import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import truing
from truing.errors import PluginError
from truing.registry.contract import KINDS, Kind, check_class, check_command, isolated
from truing.suggest import did_you_mean

Contributed = Kind | Literal["command"]
HOOKS: Mapping[str, Contributed] = {f"register_{kind}": kind for kind in (*KINDS, "command")}  # type: ignore[misc]
"""The hooks, and the kind of thing that each registers."""


@attrs.frozen(kw_only=True)
class PluginInfo:
    """What is known of one plugin, loaded or not; of a broken one, the names that it claims, as far as they came to light."""

    name: str
    """The entry point."""
    dist: str
    version: str
    hooks: tuple[str, ...] = ()
    names: Mapping[Kind, tuple[str, ...]] = attrs.field(factory=dict)
    commands: tuple[str, ...] = ()
    problem: str | None = None
    """Why it is not loaded; None when it is."""
    blocked: bool = False
    """Whether it was left out on request, not because it is broken."""

    @property
    def label(self) -> str:
        """The plugin and its distribution, as messages name them."""
        return f"plugin {self.name!r} ({self.dist} {self.version})".replace(" )", ")")

    @property
    def status(self) -> Literal["ok", "broken", "blocked"]:
        """One word for what became of it."""
        return "blocked" if self.blocked else "broken" if self.problem else "ok"


@attrs.frozen
class Source:
    """A plugin that may be loaded: an entry point, or a module at hand."""

    name: str
    dist: str
    version: str
    requires: Sequence[str]
    load: Callable[[], object]

    @classmethod
    def of_entry_point(cls, entry_point: metadata.EntryPoint) -> Source:
        """Return the source that an installed distribution's entry point names."""
        about: Any = Message()
        with suppress(Exception):  # a distribution without metadata, or none at all, still has a plugin that can be named
            about = entry_point.dist.metadata  # type: ignore[union-attr]
        dist, version = about.get("Name") or "unknown distribution", about.get("Version") or ""
        return cls(entry_point.name, dist, version, about.get_all("Requires-Dist") or (), entry_point.load)

    @classmethod
    def of_module(cls, name: str, module: object) -> Source:
        """Return a source for a module, or any object with hook functions, that is imported already."""
        return cls(name, getattr(module, "__name__", type(module).__name__), "", (), lambda: module)


@attrs.define
class Candidate:
    """A plugin while it is loaded, and what has come to light of it so far."""

    source: Source
    hooks: tuple[str, ...] = ()
    found: list[tuple[Contributed, Any]] = attrs.field(factory=list)
    """What its hooks returned."""

    def load(self, manager: pluggy.PluginManager) -> object:
        """Import the plugin, call its hooks, check what they return; return the plugin. Raises PluginError for the first fault."""
        way_out = f"reinstall or uninstall {self.source.dist}, or leave it out with TRUING_BLOCK_PLUGINS={self.source.name}"
        with isolated("cannot be imported", way_out):
            check_core_version(self.source)
            plugin = self.source.load()
            functions = hook_functions(manager, plugin)
        self.hooks = tuple(functions)
        results = {}
        for hook, function in functions.items():
            with isolated(f"{hook} failed", way_out):
                results[hook] = function()
            if isinstance(results[hook], list):  # noted before it is checked, so that a broken plugin's names are known
                self.found += [(HOOKS[hook], thing) for thing in results[hook]]
        for hook, result in results.items():
            with isolated(f"{hook}: what it returned cannot be checked", way_out):
                _check_result(hook, result)
        return plugin

    def info(self, problem: str | None = None, *, blocked: bool = False) -> PluginInfo:
        """Return what is known of the plugin by now."""
        return PluginInfo(
            name=self.source.name,
            dist=self.source.dist,
            version=self.source.version,
            hooks=self.hooks,
            names={kind: names for kind in KINDS if (names := self._names(kind))},
            commands=self._names("command"),
            problem=problem,
            blocked=blocked,
        )

    def _names(self, kind: Contributed) -> tuple[str, ...]:
        names = [inspect.getattr_static(thing, "name", None) for other, thing in self.found if other == kind]
        return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def check_core_version(source: Source) -> None:
    """Raise PluginError when the plugin's distribution asks for another version of core."""
    for line in source.requires:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) != "truing" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if not requirement.specifier.contains(truing.__version__, prereleases=True):
            raise PluginError(
                f"was built for truing{requirement.specifier}, and this is truing {truing.__version__}; "
                f"install versions that fit each other: pip install --upgrade truing {source.dist}"
            )


def hook_functions(manager: pluggy.PluginManager, plugin: object) -> dict[str, Callable[[], Any]]:
    """Return a plugin's hook functions by hook name. Raises PluginError when it has none, or one that core would never call."""
    functions: dict[str, Callable[[], Any]] = {}
    for hook, function in _marked(manager, plugin):
        if hook in functions:
            raise PluginError(f"has two functions for {hook}; keep one, and let it return everything")
        functions[hook] = function
    for hook in HOOKS:
        found = getattr(plugin, hook, None)
        if inspect.isroutine(found) and hook not in functions and not hasattr(found, "truing_spec"):
            raise PluginError(f"{hook} is not decorated, so core would never call it; put @truing.hookimpl above it")
    if not functions:
        raise PluginError(f"has no function decorated with @truing.hookimpl; the hooks are {', '.join(HOOKS)}")
    for hook, function in functions.items():
        if hook not in HOOKS:
            raise PluginError(f"{hook} is not a hook{did_you_mean(hook, HOOKS) or '.'} The hooks are {', '.join(HOOKS)}")
        parameters = inspect.signature(function).parameters
        if parameters:
            raise PluginError(f"{hook} takes arguments ({', '.join(parameters)}); a hook takes none: write  def {hook}():")
    return functions


def _marked(manager: pluggy.PluginManager, plugin: object) -> Iterator[tuple[str, Callable[[], Any]]]:
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        hook = options["specname"] or attribute
        if hook in HOOKS or not options["optionalhook"]:
            yield hook, getattr(plugin, attribute)


def _check_result(hook: str, result: object) -> None:
    kind = HOOKS[hook]
    things = "click commands" if kind == "command" else "classes"
    if not isinstance(result, list):
        raise PluginError(f"{hook} returned {_described(result)}; return a list of {things}")
    for thing in result:
        try:
            if kind == "command":
                check_command(thing)
            else:
                check_class(kind, thing)
        except PluginError as error:
            raise PluginError(f"{hook}: {error}") from None


def _described(result: object) -> str:
    return f"the class {result.__qualname__}" if isinstance(result, type) else f"{type(result).__name__} instead of a list"
