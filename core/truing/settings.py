"""Declares one setting: its default, its bounds and the line that help, docs, schema and errors show."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
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
) -> Any:
    """Return an attrs field for a setting of a plugin or of the configuration.

    `help` is one line. Bounds hold for numbers and, item by item, for sequences of numbers; None always passes, for it means the
    default. Raises ValueError when the class is constructed with a value outside of the bounds.
    """
    bounds = {key: bound for key, bound in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if bound is not None}
    metadata = {"help": help, "bounds": bounds}
    if factory is not None:
        return attrs.field(factory=factory, validator=_check_bounds, metadata=metadata)
    return attrs.field(default=default, validator=_check_bounds, metadata=metadata)


def _check_bounds(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if number is None or isinstance(number, bool) or not isinstance(number, numbers.Real):
            continue
        if not within_bounds(attribute, number):
            raise ValueError(f"{attribute.name} must be {describe_bounds(attribute)}, got {number!r}")


def within_bounds(attribute: attrs.Attribute[Any], number: float | numbers.Real) -> bool:
    """Return whether a number is within the bounds of a setting; NaN never is, where there are any."""
    return all(BOUNDS[key][1](number, bound) for key, bound in attribute.metadata.get("bounds", {}).items())


def describe_bounds(attribute: attrs.Attribute[Any]) -> str:
    """Return the bounds of a setting in words, such as "> 0 and <= 1"; empty when there are none."""
    bounds = attribute.metadata.get("bounds", {})
    return " and ".join(
        f"{BOUNDS[key][0]} {bound if isinstance(bound, int) else format(bound, 'g')}" for key, bound in bounds.items()
    )
