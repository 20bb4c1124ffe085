"""Prompts over their limit: left out, cut or an error where they are to be answered, and cut where they are answered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_data_pipeline import pair, texts, trees_of
from truing.data.strategies import PromptText
from truing.errors import DataError
from truing.loss import Layout


def test_what_a_long_prompt_to_be_answered_is_can_be_chosen() -> None:
    """With the beginning token the prompts are 3 and 5 tokens, of 4 at most."""
    rows, online = [{"prompt": "ab"}, {"prompt": "abcd"}], {"layout": Layout.ROLLOUT, "max_prompt_length": 4}
    dataset, report = trees_of(rows, PromptText(), **online)
    assert texts(dataset) == [("<bos>ab",)] and (report.prompts_too_long, report.prompts_truncated) == (1, 0)
    assert report.lines() == ["2 rows read, 1 kept (3 tokens)", "1 prompt dropped: longer than max_prompt_length 4"]
    dataset, report = trees_of(rows, PromptText(), **online, excess_length="truncate")
    assert texts(dataset) == [("<bos>ab",), ("<bos>bcd",)] and (report.prompts_too_long, report.prompts_truncated) == (0, 1)
    assert report.lines()[1:] == ["1 prompt truncated to 4 tokens, from the beginning"]
    message = (
        r"dataset, row 2: a prompt of 5 tokens, over trainer\.max_prompt_length 4; raise it, or set excess_length: drop or truncate"
    )
    with pytest.raises(DataError, match=f"^{message}$"):
        trees_of(rows, PromptText(), **online, excess_length="error")


@pytest.mark.parametrize("limits", [{"max_length": 7}, {"max_length": 7, "max_prompt_length": 5}])
def test_a_prompt_that_is_cut_to_leave_room_is_said_to_have_what_is_left(limits: Any) -> None:
    """Of 7 tokens a completion has 3."""
    cut = {"layout": Layout.ROLLOUT, "reserved": 3, "excess_length": "truncate", **limits}
    dataset, report = trees_of([{"prompt": "abcdef"}], PromptText(), **cut)
    assert texts(dataset) == [("<bos>def",)] and report.lines()[1] == "1 prompt truncated to 4 tokens, from the beginning"


@pytest.mark.parametrize("excess_length", ["drop", "truncate", "error"])
def test_prompts_with_answers_are_cut_whatever_excess_length_says(excess_length: Any) -> None:
    dataset, report = trees_of([pair("abcdef")], max_prompt_length=3, excess_length=excess_length)
    assert texts(dataset)[0][0] == "<bos>ef" and (report.prompts_too_long, report.prompts_truncated) == (0, 1)
