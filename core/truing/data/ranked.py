"""The format `ranked`: a prompt and ranked answers, all of them together or as pairs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from truing.data import columns as col
from truing.data.example import DatasetStrategy, Example, Text
from truing.data.looks import first_of, is_messages
from truing.errors import RowError
from truing.loss import Layout
from truing.settings import setting

Pairs: TypeAlias = Literal["best_next", "best_worst", "all"]
"""Which answers make a pair."""
PAIRS_HELP = "The best answer and the next, the best and the worst, or every two of unequal rank."


def choose_pairs(answers: Sequence[tuple[float, Text]], which: Pairs, column: str) -> list[tuple[Text, Text]]:
    """Return pairs of a better and a worse answer, of answers as `read_answers` sorts them; those of equal rank are none.

    Raises RowError where none is left, or a pair's answers are the same.
    """
    unequal = [(good, bad) for (best, good), (worst, bad) in itertools.combinations(answers, 2) if best < worst]
    if not unequal:
        raise RowError(f"column {column!r} has answers of one rank only ({answers[0][0]:g}), so that none is preferred")
    chosen = {"best_next": unequal[:1], "best_worst": [(answers[0][1], answers[-1][1])], "all": unequal}[which]
    same = next((good for good, bad in chosen if good == bad), None)
    if same is not None:
        raise RowError(f"column {column!r} has the same answer with two ranks: {col.shorten(same)}")
    return chosen


@attrs.frozen(kw_only=True)
class Ranked(DatasetStrategy):
    """Columns prompt and answers, a list of {answer, rank}: the lowest rank is the best, equal ranks are ties."""

    name: ClassVar[str] = "ranked"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.RANKED})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has a prompt and such answers."""
        return first_of(row, "prompt") is not None and is_messages(row.get("answers"), "answer", "rank")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the answers, best first, with ranks counted from 0 without gaps."""
        prompt = col.check_prompt(col.read(row, "prompt"), "prompt")
        ranked = col.read_answers(row, "answers", prompt)
        order = sorted({rank for rank, _ in ranked})
        responses = tuple(response for _, response in ranked)
        for index, response in enumerate(responses):
            if response in responses[:index]:
                raise RowError(f"column 'answers' has the same answer twice: {col.shorten(response)}; keep it once")
        extra = col.others(row, "prompt", "answers", "tools")
        ranks = tuple(order.index(rank) for rank, _ in ranked)
        return Example(prompt=prompt, responses=responses, ranks=ranks, tools=col.read_tools(row), columns=extra)


@attrs.frozen(kw_only=True)
class RankedPairs(DatasetStrategy):
    """Columns prompt and answers, a list of {answer, rank}, as pairs of a better and a worse one; equal ranks are no pair."""

    name: ClassVar[str] = "ranked"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    pairs: Pairs = setting("best_next", help=PAIRS_HELP)

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has a prompt and such answers."""
        return Ranked.recognises(row)

    def parse(self, row: Mapping[str, Any]) -> Example | Sequence[Example]:
        """Return the pair, or all of them."""
        prompt = col.check_prompt(col.read(row, "prompt"), "prompt")
        pairs = choose_pairs(col.read_answers(row, "answers", prompt), self.pairs, "answers")
        tools, extra = col.read_tools(row), col.others(row, "prompt", "answers", "tools")
        examples = tuple(Example(prompt=prompt, responses=pair, tools=tools, columns=extra) for pair in pairs)
        return examples if self.pairs == "all" else examples[0]
