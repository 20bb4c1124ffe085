"""Reads a row that is to be scored: one completion, a pair, or ranked answers, as its columns say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing import Example, RowError
from truing.data import columns as col
from truing.data.ranked import Ranked
from truing.data.strategies import Preference, ResponseText


@attrs.frozen(kw_only=True)
class Sample:
    """A row as an Example, and what it says of the order of its responses."""

    example: Example
    keys: tuple[str, ...] = ()
    """What each response's score is called; empty for ranked answers, whose scores are a list."""
    places: tuple[int, ...] = ()
    """Where in the row each of the ranked answers is."""
    ranks: tuple[int, ...] = (0,)
    """The rank of each response; the lower one is to have the higher score."""

    def line(self, scores: Sequence[float]) -> dict[str, Any]:
        """Return the scores by name; those of ranked answers in the order that the row has them in."""
        if self.keys:
            return dict(zip(self.keys, scores, strict=True))
        return {"scores": [scores[self.places.index(place)] for place in range(len(scores))]}

    def ordered(self, scores: Sequence[float]) -> tuple[int, int]:
        """Return how many of the row's pairs have their scores in the right order, and how many pairs there are; a tie is wrong."""
        pairs = [
            (one, other)
            for one, rank in zip(scores, self.ranks, strict=True)
            for other, worse in zip(scores, self.ranks, strict=True)
            if rank < worse
        ]
        return sum(one > other for one, other in pairs), len(pairs)


def read_sample(row: Mapping[str, Any]) -> Sample:
    """Return the row as a Sample. Raises RowError for one that has no completion or cannot be read."""
    if row.get("chosen") is not None:
        return Sample(example=Preference().parse(row), keys=("chosen_score", "rejected_score"), ranks=(0, 1))
    if row.get("answers") is not None:
        example = Ranked().parse(row)
        # as the format sorts them: by rank, and those of one rank as they come
        places = sorted(range(len(row["answers"])), key=lambda place: col.read_number(row["answers"][place], "rank"))
        return Sample(example=example, places=tuple(places), ranks=example.ranks or ())
    if row.get("messages") is not None:
        prompt, response = col.split_conversation(row["messages"], "messages")
        return Sample(example=Example(prompt=prompt, responses=(response,), tools=col.read_tools(row)), keys=("score",))
    if row.get("completion") is not None:
        return Sample(example=ResponseText().parse(row), keys=("score",))
    columns = ", ".join(map(repr, row)) or "none"
    raise RowError(
        f"the row has columns {columns}; one that can be scored has prompt and completion, messages, chosen and rejected, or "
        "prompt and answers"
    )
