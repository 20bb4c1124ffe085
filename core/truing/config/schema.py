"""The configuration as JSON Schema, for editors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

import attrs
import msgspec

from truing.config.classes import DEFAULT_ROLLOUT, TrainConfig
from truing.config.structure import ENTRY_SLOTS, Field, entry_kind, is_list, is_union, settings_of, shared_settings

if TYPE_CHECKING:
    from truing.registry import Kind, Registry

_FUNCTION = {"type": "string", "pattern": r"^\w+(\.\w+)+$", "description": "A function, as file.function."}


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the configuration with a registry's plugins.

    It knows keys, types, bounds and choices. An interpolation is text to it, so one in the place of a number does not fit.
    """
    structs = _Structs(registry)
    root = structs.struct("TrainConfig", settings_of(TrainConfig))
    (schema, *_), definitions = msgspec.json.schema_components([root, *structs.made.values()], ref_template="#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Truing", **schema, "$defs": definitions}


class _Structs:
    """Makes a msgspec struct of every class of settings, and of every plugin by its name."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.made: dict[tuple[str, str], type[msgspec.Struct]] = {}
        self.begun: set[str] = set()
        """Titles of plugins whose struct is made, or being made."""

    def struct(
        self, title: str, settings: Sequence[Field], *first: tuple[Any, ...], module: str = __name__
    ) -> type[msgspec.Struct]:
        """Return the struct of a class; the same for the same title of the same module."""
        if (title, module) not in self.made:
            fields = [*first, *(self._field(field) for field in settings)]
            self.made[title, module] = msgspec.defstruct(title, fields, module=module, kw_only=True, forbid_unknown_fields=True)
        return self.made[title, module]

    def _field(self, field: Field) -> tuple[str, Any] | tuple[str, Any, Any]:
        described = msgspec.Meta(description=field.metadata.get("help", ""))
        type_ = self._type(field.type, msgspec.Meta(**field.metadata.get("bounds", {})))
        if field.default is attrs.NOTHING:
            return field.name, Annotated[type_, described]
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, which the stubs call a function
            default = msgspec.field(default_factory=dict)
        return field.name, Annotated[Union[type_, None], described], default  # noqa: UP007  # null is every key's default

    def _type(self, type_: Any, bounds: msgspec.Meta) -> Any:
        kind = entry_kind(type_)
        if kind is not None:
            return self._slot(kind, shared_settings(type_))
        if attrs.has(type_):
            return self.struct(type_.__name__, settings_of(type_), module=type_.__module__)
        if is_union(type_):
            return Union[tuple(self._type(member, bounds) for member in get_args(type_))]  # noqa: UP007
        if is_list(type_):
            item: Any = self._type(get_args(type_)[0], bounds)
            return Union[item, list[item]]  # noqa: UP007
        if type_ is Path:
            return str
        return Annotated[type_, bounds] if type_ in (int, float) else type_

    def _slot(self, kind: Kind, shared: Sequence[Field]) -> Any:
        by_name: dict[str, list[Any]] = {}
        for cls in self.registry.classes(kind):
            by_name.setdefault(cls.name, []).append(cls)
        functions = kind in ("reward", "dataset_strategy", "rollout")
        choices: list[dict[str, Any]] = [{"enum": list(by_name)}] if by_name else []
        if functions:
            choices.append(_FUNCTION)
        # a plugin that is a setting of another one has no keys of the entry beside its own
        suffix = "" if shared or kind not in map(entry_kind, ENTRY_SLOTS) else ".within"
        for name, classes in by_name.items():
            title = f"{kind}.{name}{suffix}"
            choices.append({"$ref": f"#/$defs/{title}"})
            if title not in self.begun:  # a plugin may be a setting of itself
                self.begun.add(title)
                settings = list({field.name: field for cls in classes for field in settings_of(cls)}.values())
                default = (name,) if kind == "rollout" and name == DEFAULT_ROLLOUT and shared else ()
                self.struct(title, [*settings, *shared], ("name", Literal[name], *default))
        if functions:
            function = ("name", Annotated[str, msgspec.Meta(extra_json_schema=_FUNCTION)])
            struct = self.struct(f"{kind}.function{suffix}", shared, function)
            choices.append({"$ref": f"#/$defs/{struct.__name__}"})
        return Annotated[Any, msgspec.Meta(extra_json_schema={"anyOf": choices or [{"not": {}}]})]
