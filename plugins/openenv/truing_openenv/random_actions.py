"""Actions drawn at random from a JSON schema."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from truing_openenv.schema import Schema

WORDS = ("look", "left", "right", "take", "open", "yes", "no", "1", "7")
SPAN = 10
"""How far numbers go where the schema has no bound."""
MOST_LETTERS, MOST_ITEMS, USUAL_ITEMS = 1000, 100, 3
"""However long the least text or list may be that the schema allows, and how long a list is that may be short."""
DEEPEST = 4
"""How many objects and lists are within each other; deeper ones are empty."""


def random_action(schema: Schema, rng: random.Random) -> dict[str, Any]:
    """Return an action with every field of the schema."""
    return {name: _value(field, schema, rng, 0) for name, field in schema.fields.items()}


def random_call(tools: Sequence[Mapping[str, Any]], rng: random.Random) -> dict[str, Any]:
    """Return the action that calls one of these tools, schemas as chat templates read them."""
    function = rng.choice(tools)["function"]
    arguments = random_action(Schema(function["parameters"], frozenset()), rng)
    return {"type": "call_tool", "tool_name": function["name"], "arguments": arguments}


def _value(field: Any, schema: Schema, rng: random.Random, depth: int) -> Any:
    found = schema.resolved(field)
    choices = found.get("enum")
    if isinstance(choices, list) and choices:
        return rng.choice(choices)
    match found.get("type"):
        case "integer":
            low, high = _bounds(found)
            return rng.randint(int(low), max(int(low), int(high)))
        case "number":
            return round(rng.uniform(*_bounds(found)), 3)
        case "boolean":
            return rng.random() < 0.5
        case "array":
            least = min(int(_number(found, "minItems", 0)), MOST_ITEMS)
            most = max(least, min(int(_number(found, "maxItems", USUAL_ITEMS)), USUAL_ITEMS))
            length = rng.randint(least, most) if depth < DEEPEST else 0
            return [_value(found.get("items"), schema, rng, depth + 1) for _ in range(length)]
        case "object":
            named = found.get("properties")
            fields = named if isinstance(named, Mapping) and depth < DEEPEST else {}
            return {name: _value(one, schema, rng, depth + 1) for name, one in fields.items()}
        case _:
            return _text(found, rng)


def _text(found: Mapping[str, Any], rng: random.Random) -> str:
    text = rng.choice(WORDS).ljust(min(int(_number(found, "minLength", 0)), MOST_LETTERS), "a")
    return text[: max(0, int(_number(found, "maxLength", len(text))))]


def _bounds(found: Mapping[str, Any]) -> tuple[float, float]:
    """Return the least and the largest number; an exclusive bound lies a step away, of 1 or, for numbers with a point, 0.001."""
    step = 1 if found.get("type") == "integer" else 1e-3
    low = _number(found, "minimum", None)
    low = low if low is not None else _number(found, "exclusiveMinimum", -step) + step
    high = _number(found, "maximum", None)
    high = high if high is not None else _number(found, "exclusiveMaximum", low + SPAN + step) - step
    return (low, high) if low <= high else (high - SPAN, high)


def _number(found: Mapping[str, Any], key: str, default: Any) -> Any:
    value = found.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default
