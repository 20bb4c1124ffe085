"""The registry: what the loaded plugins have, by name, and what to say when a name is not there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

import truing
from truing import builtin, hookspecs
from truing.errors import ConfigError, PluginError
from truing.hookspecs import GROUP
from truing.loss import Layout
from truing.registry.contract import KIND_WORDS, Kind, isolated
from truing.registry.first_party import FIRST_PARTY, OTHER_TOOLS, family, first_party_dist
from truing.registry.loading import Candidate, Contributed, PluginInfo, Source
from truing.suggest import closest, did_you_mean, families

if TYPE_CHECKING:
    import click

ONLY = "TRUING_PLUGINS"
BLOCK = "TRUING_BLOCK_PLUGINS"

_log = logging.getLogger(__name__)


@attrs.frozen
class _Owned:
    """A class or command, and the label of the plugin that it came from."""

    thing: Any
    owner: str


class Registry:
    """The classes and commands of the plugins that were loaded, by name. Make one with `load` or `from_modules`."""

    def __init__(self) -> None:
        """Register core's own contributions."""
        self.plugins: tuple[PluginInfo, ...] = ()
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._owned: dict[tuple[Contributed, str], tuple[_Owned, ...]] = {}
        self._add(Source("core", "truing", truing.__version__, (), lambda: builtin))

    @classmethod
    def load(cls, *, only: Sequence[str] | None = None, block: Sequence[str] = (), quiet: bool = False) -> Registry:
        """Load core's own contributions and every installed plugin, sorted by entry point.

        `only` limits the plugins by entry-point name, `block` leaves some out; where not given, the environment variables
        TRUING_PLUGINS and TRUING_BLOCK_PLUGINS do, with names separated by commas. A broken plugin is named by a warning,
        unless `quiet`, and skipped. Raises PluginError for a name in `only` that no plugin has.
        """
        sources = sorted(
            map(Source.of_entry_point, metadata.entry_points(group=GROUP)), key=lambda source: (source.name, source.dist)
        )
        reasons = _left_out([source.name for source in sources], only, block)
        registry = cls()
        for source in sources:
            registry._add(source, reasons.get(source.name))
        if not quiet:
            registry._warn()
        return registry

    @classmethod
    def from_modules(cls, modules: Mapping[str, object]) -> Registry:
        """Load core's own contributions and these modules with hooks, by the names given: for tests and notebooks."""
        registry = cls()
        for name in sorted(modules):
            registry._add(Source.of_module(name, modules[name]))
        registry._warn()
        return registry

    def get(self, kind: Kind, name: str, *, layout: Layout | None = None) -> type[Any]:
        """Return the class that `name` stands for; `layout` chooses among formats of one name.

        Raises PluginError that says which name was meant, what to install, or why the plugin that has it is not loaded, and
        ConfigError for a name that exists, but not for this layout.
        """
        owned = self._owned.get((kind, name), ())
        fitting = [each.thing for each in owned if layout is None or layout in _layouts(kind, each.thing)]
        if len(fitting) == 1:
            found: type[Any] = fitting[0]
            return found
        if not owned:
            raise PluginError(self._why_missing(kind, name))
        word = KIND_WORDS[kind]
        served = _listed(served.value for each in owned for served in _layouts(kind, each.thing))
        if layout is None:
            raise PluginError(f"{word} {name!r} has a class for each of several layouts ({served}); say which layout is meant")
        others = ", ".join(families(self.names(kind, layout=layout))) or "none is installed"
        raise ConfigError(
            f"{word} {name!r} is for the layouts {served}, not {layout.value}; choose one for {layout.value} ({others}), of which "
            "`truing explain data.format` says what it reads, a function of yours (file.function), or a method for such data, of "
            "which `truing methods` has a table"
        )

    def names(self, kind: Kind, *, layout: Layout | None = None) -> tuple[str, ...]:
        """Return the names of a kind in alphabetical order; with `layout`, only those of methods and formats that serve it."""
        return tuple(
            sorted(
                name
                for (other, name), owned in self._owned.items()
                if other == kind and (layout is None or any(layout in _layouts(kind, each.thing) for each in owned))
            )
        )

    def claims(self, kind: Kind, name: str) -> bool:
        """Return whether some plugin has this name, though it may be broken, left out or not installed: then `get` says so."""
        known = (kind, name) in self._owned or first_party_dist(kind, name) is not None
        return known or any(info.problem and _claims(info, kind, name) for info in self.plugins)

    def classes(self, kind: Kind) -> tuple[type[Any], ...]:
        """Return every class of a kind in order of name; a format with several classes has all of them here."""
        return tuple(each.thing for name in self.names(kind) for each in self._owned[kind, name])

    def commands(self) -> Mapping[str, click.Command]:
        """Return the plugins' own commands by name."""
        return {name: owned[0].thing for (kind, name), owned in sorted(self._owned.items()) if kind == "command"}

    def _add(self, source: Source, left_out: str | None = None) -> None:
        """Load a plugin whole, or note why it is not loaded and take nothing of it."""
        candidate = Candidate(source)
        if left_out:
            self._manager.set_blocked(source.name)
            self.plugins += (candidate.info(left_out, blocked=True),)
            return
        problem = None
        try:
            self._check_entry_point(source)
            plugin = candidate.load(self._manager)
            joined = self._joined(candidate)
            with isolated("cannot be registered", f"uninstall {source.dist}"):  # one module behind two entry points
                self._manager.register(plugin, source.name)
            self._owned = joined
        except PluginError as error:
            problem = str(error)
        self.plugins += (candidate.info(problem),)

    def _check_entry_point(self, source: Source) -> None:
        taken = next((info for info in self.plugins if info.name == source.name), None)
        if taken:
            raise PluginError(
                f"the entry point {source.name!r} is already that of {taken.label}; uninstall {source.dist} or {taken.dist}"
            )

    def _joined(self, candidate: Candidate) -> dict[tuple[Contributed, str], tuple[_Owned, ...]]:
        """Return everything that is registered, with the candidate's contributions. Raises PluginError for a name that is taken."""
        joined, label = dict(self._owned), candidate.info().label
        for kind, thing in candidate.found:
            owned = joined.get((kind, thing.name), ())
            for other in owned:
                if kind != "dataset_strategy" or other.thing.layouts & thing.layouts:
                    raise PluginError(
                        f"register_{kind}: the name {thing.name!r} of {label} is already that of {other.owner}; "
                        f"rename one, or leave one out with {BLOCK}"
                    )
            joined[kind, thing.name] = (*owned, _Owned(thing, label))
        return joined

    def _why_missing(self, kind: Kind, name: str) -> str:
        word, dist = KIND_WORDS[kind], first_party_dist(kind, name)
        for info in self.plugins:
            if info.problem and (_claims(info, kind, name) or info.dist == dist):
                return f"{word} {name!r} is not available: {info.label} is {info.status}: {info.problem}"
        installed = next((info for info in self.plugins if info.dist == dist), None)
        if installed:
            has = _listed(installed.names.get(kind, ()))
            return f"{word} {name!r} is not in {installed.label}, which has {has}; try: pip install --upgrade {dist}"
        if dist:
            return f"{word} {name!r} is not installed; install its plugin with: pip install {dist}"
        if name in OTHER_TOOLS.get(kind, {}):
            return f"unknown {word} {name!r}; here it is {OTHER_TOOLS[kind][name]}"
        meant = closest(name, (*self.names(kind), *FIRST_PARTY[kind]))
        install = f" (pip install {first_party_dist(kind, meant)})" if meant and meant not in self.names(kind) else ""
        guess = f"; did you mean {meant!r}{install}?" if meant else "."
        return f"unknown {word} {name!r}{guess} Installed: {_listed(self.names(kind))}"

    def _warn(self) -> None:
        for info in self.plugins:
            if info.status == "broken":
                _log.warning("%s is skipped: %s", info.label, info.problem)


def _claims(info: PluginInfo, kind: Kind, name: str) -> bool:
    """Return whether a plugin has the name, or is called like it or, for a format, like its family."""
    return name in info.names.get(kind, ()) or info.name in (name, family(kind, name).replace("_", "-"))


def _left_out(installed: Sequence[str], only: Sequence[str] | None, block: Sequence[str]) -> dict[str, str]:
    """Return why each plugin that is not to be loaded is left out, by entry point."""
    wanted, asked = (_listed_in(ONLY) or None, ONLY) if only is None else (only, "only")
    blocked, blocker = (block, "block") if block else (_listed_in(BLOCK), BLOCK)
    for name in wanted or ():
        if name not in (*installed, "core"):
            guess = did_you_mean(name, installed) or "."
            raise PluginError(f"{asked} names the plugin {name!r}, which is not installed{guess} Installed: {_listed(installed)}")
    for name in blocked:
        if name not in installed:
            _log.warning("%s names the plugin %r, which is not installed%s", blocker, name, did_you_mean(name, installed))
    reasons = {
        name: f"{asked} does not name it; add it there to load it"
        for name in installed
        if wanted is not None and name not in wanted
    }
    return reasons | dict.fromkeys(blocked, f"{blocker} names it; take it out of there to load it")


def _listed_in(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _layouts(kind: Contributed, cls: Any) -> frozenset[Layout]:
    """Return the layouts that a method or format serves; other kinds have none and serve all."""
    if kind == "loss":
        return frozenset({cls.layout})
    return cls.layouts if kind == "dataset_strategy" else frozenset(Layout)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
