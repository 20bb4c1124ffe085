from __future__ import annotations

import pytest

from truing.testing import check_reward
from truing_rewards import FormatThink, Regex

BOTH = FormatThink(answer_tag="answer")
OPENED = FormatThink(opened_by_prompt=True)


@pytest.mark.parametrize(
    ("reward", "text", "expected"),
    [
        (FormatThink(), "<think>a</think>b", 1),
        (FormatThink(), "  <think>\na\n</think>\n\nb\n", 1),
        (FormatThink(), "b", 0),
        (FormatThink(), "", 0),
        (FormatThink(), "<think></think>b", 0),
        (FormatThink(), "<think> </think>b", 0),
        (FormatThink(), "<think>a</think>", 0),
        (FormatThink(), "<think>a</think> \n", 0),
        (FormatThink(), "<think>a", 0),
        (FormatThink(), "a</think>b", 0),
        (FormatThink(), "b<think>a</think>b", 0),
        (FormatThink(), "<think>a<think>c</think>b", 0),
        (FormatThink(), "<think>a</think>b</think>c", 0),
        (FormatThink(), "<think>a</think>b<think>", 0),
        (FormatThink(tag="reasoning"), "<reasoning>a</reasoning>b", 1),
        (FormatThink(tag="reasoning"), "<think>a</think>b", 0),
        (BOTH, "<think>a</think> <answer>b</answer> ", 1),
        (BOTH, "<think>a</think>b", 0),
        (BOTH, "<think>a</think><answer></answer>", 0),
        (BOTH, "<think>a</think><answer>b</answer>c", 0),
        (BOTH, "<think>a</think>c<answer>b</answer>", 0),
        (BOTH, "<think>a</think><answer>b</answer><answer>b</answer>", 0),
        (BOTH, "<think>a</think><answer><think>b</answer>", 0),
        (OPENED, "a</think>b", 1),
        (OPENED, "<think>a</think>b", 0),
        (OPENED, "</think>b", 0),
        (OPENED, "a", 0),
    ],
)
def test_format_think(reward, text, expected, completion):
    assert reward([completion(text)]) == [expected]


@pytest.mark.parametrize(
    ("reward", "text", "expected"),
    [
        (Regex(pattern="b+"), "abbc", 1),
        (Regex(pattern="b+"), "ac", 0),
        (Regex(pattern="b+", where="whole"), "abbc", 0),
        (Regex(pattern="b+", where="whole"), "bb", 1),
        (Regex(pattern="a.b"), "a\nb", 1),
        (Regex(pattern="B"), "b", 0),
        (Regex(pattern="B", ignore_case=True), "b", 1),
        (Regex(pattern="sorry", score=-0.5), "I am sorry", -0.5),
    ],
)
def test_regex(reward, text, expected, completion):
    assert reward([completion(text)]) == [expected]


def test_the_contract():
    check_reward(FormatThink)
    check_reward(Regex(pattern="a"))
