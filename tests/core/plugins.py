"""Dummy plugins for tests: modules at hand, and distributions as pip would install them."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs

from truing import Completion, ConfigError, Example, Layout, Loss, Needs, hookimpl, setting
from truing.registry import PluginInfo, Registry

LOSS_MODULE = """
from typing import ClassVar
import attrs
from truing import Layout, Loss, Needs, hookimpl, setting

@attrs.frozen(kw_only=True)
class Dummy(Loss):
    name: ClassVar[str] = "{name}"
    layout: ClassVar[Layout] = Layout.PAIRED
    beta: float = setting(0.1, gt=0, help="Scale.")

    @property
    def needs(self):
        return Needs.NOTHING

    def __call__(self, inputs):
        raise NotImplementedError

@hookimpl
def register_loss():
    return [Dummy]
"""


PLUGIN_WITH_COMMAND = """
import click
from truing import hookimpl

@click.command("serve-dummy")
def serve():
    "Serve dummies."
    click.echo("served")

@hookimpl
def register_command():
    return [serve]
"""

PLUGIN_WITH_DIALECT = """
from tests.core.plugins import Tuner
from truing import hookimpl

@hookimpl
def register_dialect():
    return [Tuner]
"""


@attrs.frozen(kw_only=True)
class Hinge(Loss):
    name: ClassVar[str] = "hinge"
    layout: ClassVar[Layout] = Layout.PAIRED
    beta: float = setting(0.1, gt=0, help="Scale.")

    @property
    def needs(self):
        return Needs.NOTHING

    def __call__(self, inputs):
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Votes:
    name: ClassVar[str] = "votes"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})

    def parse(self, row):
        return Example(prompt=row["prompt"])


@attrs.frozen(kw_only=True)
class Brevity:
    name: ClassVar[str] = "brevity"

    def __call__(self, completions: list[Completion]):
        return [0.0 for _ in completions]


@attrs.frozen(kw_only=True)
class Echo:
    name: ClassVar[str] = "echo"

    def open(self, context):
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Tuner:
    """The dialect of a tool with six keys, one of them nested."""

    name: ClassVar[str] = "tuner"
    format: str = setting("preference", help="How a row is read.")

    def translate(self, values):
        data = values.get("data") or {}
        known = ("algorithm", "kl", "checkpoint", "data", "lr", "save_to")
        unknown = [key for key in values if key not in known] + [f"data.{key}" for key in data if key != "file"]
        if unknown:
            raise ConfigError(f"cannot translate {', '.join(unknown)}; the keys that can be are {', '.join(known)}")
        return {
            "method": {"name": values.get("algorithm"), "beta": values.get("kl")},
            "model": {"name": values.get("checkpoint")},
            "data": {"path": data.get("file"), "format": self.format},
            "trainer": {"learning_rate": values.get("lr")},
            "output": {"dir": values.get("save_to")},
        }


def module(**hooks: Any) -> types.ModuleType:
    """Return a module whose hooks return these values; a function is a hook as it stands."""
    made = types.ModuleType("dummy")
    for hook, result in hooks.items():
        setattr(made, hook, result if isinstance(result, types.FunctionType) else _hook(hook, result))
    return made


def _hook(name: str, result: Any) -> Callable[[], Any]:
    def hook():
        return result

    hook.__name__ = name
    return hookimpl(hook)


def variant(cls: type, **members: Any) -> type:
    """Return a frozen attrs class like `cls` with other members; None takes a member away."""
    kept = {key: value for key, value in vars(cls).items() if key in MEMBERS.get(cls.__name__, ())}
    body = {key: value for key, value in {**kept, **members}.items() if value is not None}
    return attrs.frozen(type(cls.__name__, cls.__bases__, {"__module__": __name__, **body}))


MEMBERS: Mapping[str, tuple[str, ...]] = {
    "Hinge": ("name", "layout", "scope", "needs", "__call__"),
    "Votes": ("name", "layouts", "parse"),
    "Brevity": ("name", "__call__"),
    "Echo": ("name", "open"),
    "Tuner": ("name", "translate"),
}


def info(registry: Registry, name: str) -> PluginInfo:
    """Return what the registry knows of the plugin with this entry point."""
    return next(info for info in registry.plugins if info.name == name)


class Site:
    """A folder on sys.path, with distributions in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, code: str | None = None, *, dist: str | None = None, version: str = "1.0", requires: str = ""):
        """Install a distribution with one entry point; its module is called dummy_<dist>."""
        dist = dist or f"truing-{name}"
        import_name = "dummy_" + dist.replace("-", "_")
        (self.folder / f"{import_name}.py").write_text(LOSS_MODULE.format(name=name) if code is None else code)
        info = self.folder / f"{import_name}-{version}.dist-info"
        info.mkdir()
        requirement = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n{requirement}")
        (info / "entry_points.txt").write_text(f"[truing]\n{name} = {import_name}\n")
        importlib.invalidate_caches()


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Put a new site on sys.path, and forget its modules afterwards."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield Site(folder)
    finally:
        sys.path.remove(str(folder))
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith("dummy_")]:
            del sys.modules[name]
