"""From an observation, or a tool's answer, to the text that a policy reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from truing.errors import ConfigError
from truing_openenv.protocol import Turn
from truing_openenv.schema import Schema


@attrs.frozen
class ObservationReader:
    """Makes text of an observation: of one field, or of all of them."""

    field: str | None
    """The field that is read; None for the only one, or all of them as JSON."""

    @classmethod
    def of(cls, schemas: Iterable[Schema], field: str | None) -> ObservationReader:
        """Return the reader for observations of these schemas. Raises ConfigError for a field that none has."""
        fields = {name for schema in schemas for name in schema.fields}
        if field is not None and field not in fields:
            named = ", ".join(sorted(fields)) or "none"
            raise ConfigError(f"rollout.observation_field is {field!r}; the fields of an observation here are {named}")
        return cls(field)

    def __call__(self, turn: Turn) -> str:
        """Return the text; nothing for an observation without a field."""
        fields = turn.fields
        if self.field is not None:
            return as_text(fields.get(self.field))
        if len(fields) == 1:
            return as_text(next(iter(fields.values())))
        return as_text(fields) if fields else ""


def as_text(value: Any) -> str:
    """Return text as it is, nothing for None, and anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tool_answer(turn: Turn) -> str:
    """Return what a tool answered: its data, else its text, or what went wrong."""
    error, result = turn.observation.get("error"), turn.observation.get("result")
    if error:
        return f"error: {error['message'] if isinstance(error, Mapping) and 'message' in error else as_text(error)}"
    if not isinstance(result, Mapping) or "content" not in result:
        return as_text(result)
    content = result["content"]
    if result.get("data") is not None:
        text = as_text(result["data"])
    elif isinstance(content, list):
        text = "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    else:
        text = as_text(content)
    return f"error: {text}" if result.get("is_error") else text
