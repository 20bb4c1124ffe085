"""What a key or a plugin is: its type, default, bounds and line of help, and where it comes from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import attrs

from truing.config.classes import TrainConfig
from truing.config.dump import plain
from truing.config.failures import OTHER_TOOLS
from truing.config.faults import KeyPath, dotted, show
from truing.config.structure import (
    Field,
    describe_type,
    entry_kind,
    is_list,
    is_union,
    settings_of,
    shared_settings,
)
from truing.errors import ConfigError
from truing.registry import KIND_WORDS, Kind, Registry
from truing.settings import describe_bounds
from truing.suggest import closest


def explain(key: str, registry: Registry) -> str:
    """Return the text about a key (trainer.learning_rate), the last part of one (beta), a plugin (dpo) or its field (dpo.beta).

    Raises ConfigError, with the nearest key, for an unknown one.
    """
    entries: dict[str, list[str]] = {}
    for name, text in _catalog(registry):
        entries.setdefault(name, []).append(text)
    asked = ".".join(part for part in key.split(".") if part and not part.isdecimal())
    if not asked:
        raise ConfigError("the key is empty; give one, such as trainer.learning_rate, or the name of a plugin")
    found = entries.get(asked) or [text for name, texts in entries.items() if name.endswith(f".{asked}") for text in texts]
    found = found or [text for name, text in _plugin_fields(registry) if name == asked]
    if found:
        return "\n\n".join(found)
    near = (
        OTHER_TOOLS.get(asked)
        or closest(asked, entries)
        or closest(asked.rpartition(".")[2], {name.rpartition(".")[2]: name for name in entries})
    )
    hint = f"did you mean {near!r}?" if near else f"the keys of the first level are {', '.join(_names(TrainConfig))}"
    raise ConfigError(f"{key!r} is no key of the configuration and no plugin; {hint}")


def _names(cls: type) -> list[str]:
    return [field.name for field in settings_of(cls)]


def _catalog(registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield the text of every key and every plugin."""
    yield from _section(TrainConfig, (), registry)
    for kind in KIND_WORDS:
        for cls in registry.classes(kind):
            yield cls.name, _plugin(cls, kind, registry)


def _section(cls: type, path: KeyPath, registry: Registry) -> Iterator[tuple[str, str]]:
    for field in settings_of(cls):
        here = (*path, field.name)
        leaves = _leaf_types(field.type)
        kinds = [kind for type_ in leaves if (kind := entry_kind(type_)) is not None]
        sections = [type_ for type_ in leaves if attrs.has(type_) and entry_kind(type_) is None]
        shared = [below for type_ in leaves for below in shared_settings(type_)]
        lines = [_field(field, dotted(here))]
        below_all = [*(below for section in sections for below in settings_of(section)), *shared]
        lines += [f"  {below.name:<23} {below.metadata['help']}" for below in below_all]
        lines += [f"  {cls.name:<27} {_summary(cls)}" for kind in kinds for cls in registry.classes(kind)]
        yield dotted(here), "\n".join(lines)
        for section in sections:
            yield from _section(section, here, registry)
        for kind in kinds:
            yield from _plugin_keys(kind, here, registry)
            for below in shared:
                key = dotted((*here, below.name))
                yield key, _field(below, key, f" of every {KIND_WORDS[kind]}")


def _leaf_types(type_: Any) -> list[Any]:
    if is_union(type_) or is_list(type_):
        return [leaf for member in get_args(type_) if member is not Ellipsis for leaf in _leaf_types(member)]
    return [type_]


def _plugin_keys(kind: Kind, path: KeyPath, registry: Registry) -> Iterator[tuple[str, str]]:
    for cls in registry.classes(kind):
        for field in settings_of(cls):
            text = _field(field, dotted((*path, field.name)), f" of the {KIND_WORDS[kind]} {cls.name}")
            yield dotted((*path, field.name)), f"{text}\n    {_origin(kind, cls.name, registry)}"


def _plugin(cls: Any, kind: Kind, registry: Registry) -> str:
    layouts = ", ".join(layout.value for layout in getattr(cls, "layouts", ()))
    lines = [f"{cls.name}: a {KIND_WORDS[kind]}{f' for {layouts} data' if layouts else ''}", f"    {_summary(cls)}"]
    lines += [f"    {_origin(kind, cls.name, registry)}", *(_indented(_field(field, field.name)) for field in settings_of(cls))]
    return "\n".join(lines)


def _plugin_fields(registry: Registry) -> Iterator[tuple[str, str]]:
    for kind in KIND_WORDS:
        for cls in registry.classes(kind):
            for field in settings_of(cls):
                name = f"{cls.name}.{field.name}"
                yield name, f"{_field(field, name)}\n    {_origin(kind, cls.name, registry)}"


def _field(field: Field, name: str, owner: str = "") -> str:
    bounds = describe_bounds(field)
    type_ = describe_type(field.type) + (f" {bounds}" if bounds else "")
    return f"{name}{owner}: {type_}, {_default(field)}\n    {field.metadata.get('help', '')}"


def _default(field: Field) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]  # a class, which the stubs call a function
    default = field.default.factory() if made else field.default  # type: ignore[union-attr]
    if attrs.has(type(default)):
        return "default: that of each of its keys"
    value = plain(default)
    return f"default {value if isinstance(value, (str, list, dict)) else show(value)}"


def _summary(cls: Any) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _origin(kind: Kind, name: str, registry: Registry) -> str:
    return f"From {' and '.join(info.label for info in registry.plugins if name in info.names.get(kind, ()))}."


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
