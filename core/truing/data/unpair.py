"""Pairs as labelled samples, for methods that learn from single responses and a format that reads pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from truing.data.example import Example
from truing.errors import RowError
from truing.loss import Layout

Parse = Callable[[Mapping[str, Any]], Example | Sequence[Example]]
"""Reads a row."""


def takes_apart(served: frozenset[Layout], layout: Layout, *, asked: bool = False) -> bool:
    """Return whether a format for these layouts serves `layout` by its pairs: as was asked for, or as it reads no labels."""
    return layout is Layout.LABELED and Layout.PAIRED in served and (asked or layout not in served)


def unpair(pair: Example) -> tuple[Example, Example]:
    """Return the sides of a pair as samples, each with a note for the report: chosen is desirable, rejected is not."""
    if len(pair.responses) != 2:
        raise RowError(f"a pair has two responses, the row gives {len(pair.responses)}")
    chosen, rejected = pair.responses
    return (
        _labelled(pair, chosen, True, "sample(s) desirable: the chosen side of a pair"),
        _labelled(pair, rejected, False, "sample(s) undesirable: the rejected side of a pair"),
    )


def unpairing(parse: Parse) -> Parse:
    """Return what reads a row as `parse` does, and takes its pairs apart."""

    def parse_apart(row: Mapping[str, Any]) -> list[Example]:
        parsed = parse(row)
        return [side for pair in ([parsed] if isinstance(parsed, Example) else parsed) for side in unpair(pair)]

    return parse_apart


def _labelled(pair: Example, response: Any, label: bool, note: str) -> Example:
    # what the format noted is of the row, and counted once
    notes = (*pair.notes, note) if label else (note,)
    return attrs.evolve(pair, responses=(response,), label=label, margin=None, notes=notes)
