"""From plain values to attrs classes, strictly: every value has exactly the type that its field declares.

cattrs walks the classes and collects what is wrong; the hooks here decide what is right and say it in a user's words.
"""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.cols import homogenous_tuple_structure_factory, list_structure_factory
from cattrs.gen import make_dict_structure_fn, override

from truing.config.classes import RewardEntry, RolloutConfig
from truing.config.faults import WrongValueError, show
from truing.config.reading import scalar
from truing.data.example import DatasetStrategy
from truing.loss import Loss
from truing.rewards import Reward
from truing.rollout import Rollout
from truing.settings import describe_bounds, within_bounds
from truing.suggest import did_you_mean

if TYPE_CHECKING:
    from truing.registry import Kind

Field: TypeAlias = "attrs.Attribute[Any]"
StructureHook: TypeAlias = Callable[[Any, Any], Any]

LISTS: tuple[Any, ...] = (tuple, list, Sequence)
_ARTICLES = {int: "an int", float: "a float", bool: "true or false", str: "a string", Path: "a path"}
PLUGIN_TYPES: Mapping[type, Kind] = {Loss: "loss", DatasetStrategy: "dataset_strategy", Reward: "reward", Rollout: "rollout"}
"""The kind of plugin that a field of each type names."""
ENTRY_SLOTS: Mapping[type, str] = {RewardEntry: "reward", RolloutConfig: "backend"}
"""Classes whose keys are written beside those of a plugin, and the field that the plugin is."""
_BOOL_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def settings_of(cls: type) -> tuple[Field, ...]:
    """Return the fields of a class that are keys of the YAML, with their types resolved."""
    attrs.resolve_types(cls)
    return tuple(field for field in attrs.fields(cls) if field.init and not field.metadata.get("internal"))


def shared_settings(entry: type) -> tuple[Field, ...]:
    """Return the keys that any plugin's mapping may have where a class of ENTRY_SLOTS is read; none for another class."""
    return tuple(field for field in settings_of(entry) if field.name != ENTRY_SLOTS[entry]) if entry in ENTRY_SLOTS else ()


def entry_kind(type_: Any) -> Kind | None:
    """Return the kind of plugin that a type is, or that an entry of this type has beside its own keys."""
    slot = setting_of(type_, ENTRY_SLOTS[type_]).type if type_ in ENTRY_SLOTS else type_
    return PLUGIN_TYPES.get(cast(Any, slot))


def setting_of(cls: type, name: str) -> Field:
    """Return one field of a class, with its type resolved."""
    return next(field for field in settings_of(cls) if field.name == name)


def describe_type(type_: Any) -> str:
    """Return a type in a message's words: "an int", "one of no, bf16, fp16"."""
    if type_ in _ARTICLES:
        return _ARTICLES[type_]
    if is_literal(type_):
        choices = [str(choice) for choice in get_args(type_)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if is_union(type_):
        return _describe_union([member for member in get_args(type_) if member is not types.NoneType])
    if is_list(type_):
        return f"a list (each {describe_type(get_args(type_)[0])})"
    if type_ in {*PLUGIN_TYPES, *ENTRY_SLOTS}:
        return "a name or a mapping"
    return "a mapping" if attrs.has(type_) or is_mapping(type_) else getattr(type_, "__name__", str(type_))


def _describe_union(members: Sequence[Any]) -> str:
    if len(members) == 2 and is_list(members[1]) and get_args(members[1])[0] == members[0]:
        return f"{describe_type(members[0])}, or a list of them"
    return " or ".join(map(describe_type, members))


def is_literal(type_: Any) -> bool:
    """Return whether a type is a choice of values."""
    origin: Any = get_origin(type_)
    return origin is Literal


def is_union(type_: Any) -> bool:
    """Return whether a type is a union, optional values included."""
    return get_origin(type_) in (Union, types.UnionType)


def is_list(type_: Any) -> bool:
    """Return whether a type is written as a YAML list."""
    return get_origin(type_) in LISTS


def is_mapping(type_: Any) -> bool:
    """Return whether a type is a mapping with keys of the user's own."""
    return get_origin(type_) in (dict, Mapping)


def strict_converter() -> cattrs.Converter:
    """Return a converter for attrs classes of settings. null is a key's default; one value stands for a list of one."""
    converter = cattrs.Converter(detailed_validation=True)
    for type_, hook in ((int, _int), (float, _float), (bool, _exactly), (str, _exactly), (Path, _path)):
        converter.register_structure_hook(type_, hook)
    converter.register_structure_hook_func(is_literal, _literal)
    converter.register_structure_hook_factory(is_union, _union_hook)
    converter.register_structure_hook_factory(is_list, _list_hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    converter.register_structure_hook_factory(is_mapping, _mapping_hook)
    return converter


def _wrong(type_: Any, value: object, hint: str = "") -> WrongValueError:
    got = f"the string {show(value)}" if isinstance(value, str) and type_ in (int, float, bool) else show(value)
    return WrongValueError(f"must be {describe_type(type_)}, got {got}{hint}")


def _exactly(value: object, type_: type) -> object:
    if type(value) is type_:
        return value
    if type_ is str and isinstance(value, Path):
        return str(value)
    if type_ is bool and isinstance(value, str) and value.lower() in _BOOL_WORDS:
        raise _wrong(type_, value, f"; write {_BOOL_WORDS[value.lower()]}")
    if type_ is str and isinstance(value, (bool, int, float)):
        raise _wrong(type_, value, "; put it in quotes")
    raise _wrong(type_, value, _unquote(value, type_))


def _int(value: object, type_: type) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        raise _wrong(type_, value, f"; write {int(value)}")
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):  # NumPy's are no int
        return int(value)
    return _exactly(value, type_)


def _float(value: object, type_: type) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong(type_, value, _unquote(value, int) or _unquote(value, float))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise WrongValueError(f"must be a finite number, got {show(value)}")
    return number


def _unquote(value: object, type_: type) -> str:
    return "; remove the quotes" if isinstance(value, str) and type(scalar(value)) is type_ else ""


def _path(value: object, type_: type) -> Path:
    if not isinstance(value, (str, Path)) or not value or "\0" in str(value):
        raise _wrong(type_, value)
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise WrongValueError(f"is {show(str(value))}, and there is no such home folder; write the path in full") from error


def _literal(value: object, type_: Any) -> object:
    choices = get_args(type_)
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    raise _wrong(type_, value, did_you_mean(value, map(str, choices)) if isinstance(value, str) else "")


def _union_hook(union: Any, converter: cattrs.Converter) -> StructureHook:
    members = [member for member in get_args(union) if member is not types.NoneType]

    def structure(value: Any, _: Any) -> Any:
        if value is None and types.NoneType in get_args(union):
            return None
        meant = [member for member in members if _is_like(member, value)] or members
        for member in meant:
            try:
                return converter.structure(value, member)
            except (WrongValueError, cattrs.BaseValidationError):
                if len(meant) == 1 and not (is_literal(member) and any(map(attrs.has, members))):
                    raise
        raise _wrong(union, value)

    return structure


def _is_like(type_: Any, value: object) -> bool:
    """Return whether a value is a list, a mapping, an object of settings or none of these, as the type asks."""
    if isinstance(value, (list, tuple)):
        return is_list(type_)
    if isinstance(value, Mapping):
        return attrs.has(type_) or is_mapping(type_) or type_ in PLUGIN_TYPES
    if attrs.has(type(value)):
        return attrs.has(type_) or type_ in PLUGIN_TYPES
    return not (is_list(type_) or is_mapping(type_) or attrs.has(type_))


def _list_hook(type_: Any, converter: cattrs.Converter) -> StructureHook:
    is_tuple = get_origin(type_) is tuple
    one_type = not is_tuple or get_args(type_)[1:] == (...,)
    make = homogenous_tuple_structure_factory if is_tuple else list_structure_factory

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if not one_type:
                return _fixed_tuple(value, type_, converter)
            return make(type_, converter)(value, type_)
        if not one_type:
            raise _wrong(type_, value)
        return (tuple if is_tuple else list)([converter.structure(value, get_args(type_)[0])])

    return structure


def _fixed_tuple(value: Sequence[Any], type_: Any, converter: cattrs.Converter) -> tuple[Any, ...]:
    members = get_args(type_)
    if len(value) != len(members):
        raise WrongValueError(f"must be a list of {len(members)}, got one of {len(value)}")
    return tuple(converter.structure(item, member) for item, member in zip(value, members, strict=True))


def _mapping_hook(type_: Any, converter: cattrs.Converter) -> StructureHook:
    generated = converter.gen_structure_mapping(type_)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(type_, value)
        return generated(value, type_)

    return structure


def _class_hook(cls: Any, converter: cattrs.Converter) -> StructureHook:
    fields = settings_of(cls)
    hooks: Any = {field.name: override(struct_hook=_field_hook(field, converter)) for field in fields}
    hidden: Any = {field.name: override(omit=True) for field in attrs.fields(cls) if field.name not in hooks}
    generated = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **hooks, **hidden
    )

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, cls):
            value = {field.name: getattr(value, field.name) for field in fields}
        if not isinstance(value, Mapping):
            hint = f", such as {{{fields[0].name}: {value}}}" if isinstance(value, str) and fields else ""
            raise WrongValueError(f"must be a mapping{hint}, got {show(value)}")
        return generated({key: item for key, item in value.items() if item is not None or key not in hooks}, cls)

    return structure


def _field_hook(field: Field, converter: cattrs.Converter) -> StructureHook:
    instead = field.metadata.get("instead", {})

    def structure(value: Any, type_: Any) -> Any:
        if isinstance(value, str) and value in instead:
            raise WrongValueError(f"is {show(value)}, which is another setting here: write {instead[value]}")
        result = converter.structure(value, type_)
        numbers = result if isinstance(result, (tuple, list)) else (result,)
        for number, written in zip(numbers, value if isinstance(value, (tuple, list)) else (value,), strict=True):
            if isinstance(number, (int, float)) and not within_bounds(field, number):
                raise WrongValueError(f"must be {describe_bounds(field)}, got {show(written)}")
        return result

    return structure
