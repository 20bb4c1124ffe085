"""Reads a row that is to be scored: one completion, pairs, or ranked answers, as its format or its columns say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing import Example, RowError
from truing.data import columns as col
from truing.data.looks import first_of
from truing_reward_model.formats import Parse, RowFormat

_PAIR = ("chosen_score", "rejected_score")


@attrs.frozen(kw_only=True)
class Sample:
    """A row as Examples, and what it says of the order of their responses."""

    examples: tuple[Example, ...]
    keys: tuple[str, ...] = ()
    """What each response's score is called; empty for ranked answers, whose scores are a list."""
    listed: bool = False
    """Whether the format makes several samples of a row: then they are a list, though it be of one."""
    places: tuple[int, ...] = ()
    """Where in the row each of the ranked answers is; empty for the order of their ranks."""

    def line(self, scores: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Return the scores by name; those of ranked answers in the order that the row has them in."""
        if self.listed:
            return {"pairs": [dict(zip(self.keys, of_pair, strict=True)) for of_pair in scores]}
        (found,) = scores
        if self.keys:
            return dict(zip(self.keys, found, strict=True))
        places = self.places or tuple(range(len(found)))
        return {"scores": [found[places.index(place)] for place in range(len(found))]}

    def ordered(self, scores: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
        """Return of each sample how many pairs have their scores in the right order, and how many there are; a tie is wrong."""
        return [_ordered(example, found) for example, found in zip(self.examples, scores, strict=True)]


def _ordered(example: Example, scores: Sequence[float]) -> tuple[int, int]:
    ranked = list(zip(scores, example.ranks or range(len(scores)), strict=True))
    pairs = [(one, other) for one, rank in ranked for other, worse in ranked if rank < worse]
    return sum(one > other for one, other in pairs), len(pairs)


def read_sample(row: Mapping[str, Any], form: RowFormat) -> Sample:
    """Return the row as a Sample. Raises RowError for one that has no completion or cannot be read."""
    if form.answers is None:
        is_single = form.worse and first_of(row, *form.worse) is None
        return _sample(form.single if form.single is not None and is_single else form.main, row)
    if row.get("chosen") is not None:
        return _sample(form.main, row)
    if row.get("answers") is not None:
        sample = _sample(form.answers, row)
        # as the format sorts them: by rank, and those of one rank as they come
        places = sorted(range(len(row["answers"])), key=lambda place: col.read_number(row["answers"][place], "rank"))
        return sample if sample.keys else attrs.evolve(sample, places=tuple(places))
    if form.single is not None and first_of(row, "completion", "messages") is not None:
        return _sample(form.single, row)
    columns = ", ".join(map(repr, row)) or "none"
    raise RowError(
        f"the row has columns {columns}; one that can be scored has prompt and completion, messages, chosen and rejected, or "
        "prompt and answers. --format names the format of other rows"
    )


def _sample(parse: Parse, row: Mapping[str, Any]) -> Sample:
    parsed = parse(row)
    examples = (parsed,) if isinstance(parsed, Example) else tuple(parsed)
    keys = () if examples[0].ranks is not None else ("score",) if len(examples[0].responses) == 1 else _PAIR
    return Sample(examples=examples, keys=keys, listed=not isinstance(parsed, Example))
