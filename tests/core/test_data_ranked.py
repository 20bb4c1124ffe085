"""Ranked answers as pairs."""

from __future__ import annotations

import pytest

from truing.data.example import Example
from truing.data.ranked import RankedPairs
from truing.errors import RowError


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [("best_next", ["ac"]), ("best_worst", ["ad"]), ("all", ["ac", "ad", "bc", "bd", "cd"])],
)
def test_ranked_answers_as_pairs(pairs, expected):
    """Ranks 1, 1, 7, 9 of a, b, c, d: a and b are no pair."""
    answers = [{"answer": text, "rank": rank} for text, rank in (("c", 7), ("a", 1), ("b", 1), ("d", 9))]
    parsed = RankedPairs(pairs=pairs).parse({"prompt": "q", "answers": answers, "id": 3})
    examples = [parsed] if isinstance(parsed, Example) else list(parsed)
    assert ["".join(example.responses) for example in examples] == expected
    assert all(example.columns == {"id": 3} and example.ranks is None for example in examples)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"answer": "b", "rank": 1}, r"column 'answers' has answers of one rank only \(1\), so that none is preferred"),
        ({"answer": "a", "rank": 2}, "column 'answers' has the same answer with two ranks: 'a'"),
    ],
)
def test_ranked_answers_that_make_no_pair(second, message):
    with pytest.raises(RowError, match=message):
        RankedPairs().parse({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, second]})
