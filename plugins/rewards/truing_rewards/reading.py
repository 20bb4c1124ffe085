"""What rewards read: a column of the rows, the part of a text that answers, a length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from truing import Completion, ConfigError

Unit: TypeAlias = Literal["tokens", "words", "characters"]


def column(reward: str, name: str, completions: Sequence[Completion]) -> list[Any]:
    """Return each row's value, None where it has none. Raises ConfigError when no row of the call has the column."""
    if completions and not any(name in completion.columns for completion in completions):
        known = ", ".join(sorted({key for completion in completions for key in completion.columns})) or "none"
        raise ConfigError(
            f"reward {reward!r} reads column {name!r}, which the row has not (columns: {known}); name another one in the reward's "
            "settings, or give every row this one, null where the reward does not apply"
        )
    return [completion.columns.get(name) for completion in completions]


def accepted(value: Any) -> list[str]:
    """Return the answers that a row accepts, as text: its value, or each of a list; none for None and an empty list."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(one) for one in values if one is not None]


def after_think(text: str) -> str:
    """Return what follows the last </think>; the whole text where there is none."""
    return text.rpartition("</think>")[2]


def length(completion: Completion, unit: Unit) -> int:
    """Return how long a completion is; tokens are those that the policy wrote, its end token included."""
    if unit == "tokens":
        return len(completion.token_ids) if completion.loss_mask is None else sum(completion.loss_mask)
    return len(completion.text.split()) if unit == "words" else len(completion.text)
