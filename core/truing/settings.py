"""Declares one setting: its default, its bounds and the line that help, docs, schema and errors show."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any

import attrs

BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": (">", operator.gt),
    "ge": (">=", operator.ge),
    "lt": ("<", operator.lt),
    "le": ("<=", operator.le),
}


def setting(
    default: Any = attrs.NOTHING,
    *,
    help: str,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    factory: Callable[[], Any] | None = None,
    also: tuple[str, ...] = (),
    instead: Mapping[str, str] | None = None,
) -> Any:
    """Return an attrs field for a setting of a plugin or of the configuration.

    `help` is one line. `also` are names that papers and other tools have for the setting, and `instead` values that they have for
    it, with what to write here: errors suggest by them. Bounds hold for numbers and, item by item, for sequences of numbers; None
    always passes, for it means the default. Raises ValueError when the class is constructed with a value outside of the bounds or,
    for a plugin's class, with one that its type does not take.
    """
    bounds = {key: bound for key, bound in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if bound is not None}
    metadata = {"help": help, "bounds": bounds, "also": also, "instead": instead or {}}
    validators = [_check_bounds, _check_type]
    if factory is not None:
        return attrs.field(factory=factory, validator=validators, metadata=metadata)
    return attrs.field(default=default, validator=validators, metadata=metadata)


def refuse_unread(settings: Any, name: str, why: str, remedy: str) -> None:
    """Raise ValueError where a setting is not its default, and `why`, what some other setting is, leaves it unread."""
    value, default = getattr(settings, name), attrs.fields_dict(type(settings))[name].default
    if value != default:
        shown = format(value, "g") if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
        raise ValueError(f"{name} is {shown}, but {why} does not read it; leave it out, or {remedy}")


def _check_bounds(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if number is None or isinstance(number, bool) or not isinstance(number, numbers.Real):
            continue
        if not within_bounds(attribute, number):
            raise ValueError(f"{attribute.name} must be {describe_bounds(attribute)}, got {number!r}")


def is_plugin(thing: object) -> bool:
    """Return whether a thing is of a plugin's class: it has its name as a class variable, where a user's function has a field."""
    return isinstance(getattr(type(thing), "name", None), str)


def _check_type(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Raise ValueError for a value of another type; the configuration's own classes are checked as a whole, when they are used."""
    if is_plugin(instance) and value is not None and value is not attribute.default:
        from truing.config.instances import check_setting

        check_setting(type(instance), attribute.name, value)


def within_bounds(attribute: attrs.Attribute[Any], number: float | numbers.Real) -> bool:
    """Return whether a number is within the bounds of a setting; NaN never is, where there are any."""
    return all(BOUNDS[key][1](number, bound) for key, bound in attribute.metadata.get("bounds", {}).items())


def describe_bounds(attribute: attrs.Attribute[Any]) -> str:
    """Return the bounds of a setting in words, such as "> 0 and <= 1"; empty when there are none."""
    bounds = attribute.metadata.get("bounds", {})
    return " and ".join(
        f"{BOUNDS[key][0]} {bound if isinstance(bound, int) else format(bound, 'g')}" for key, bound in bounds.items()
    )
