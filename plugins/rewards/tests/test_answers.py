r"""Answers: what is the same and what is not.

math_accuracy: 1/2 = 0.5 = 2/4 = \frac{1}{2}; 2^10 = 1024; x + 1 = 1 + x; {1, 2} = {2, 1}; 0.333 is not 1/3.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.testing import check_reward
from truing_rewards import ExactMatch, MathAccuracy
from truing_rewards.reading import accepted, after_think


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("72", "The answer is 72.", 1),
        ("72", "She sold 48 + 24 = 72 clips", 1),
        ("72", "72 is wrong, it is 73", 0),
        (72, "$72$", 1),
        ("1,234", "so 1234", 1),
        ("1234", "so 1,234.", 1),
        ("-3", r"\boxed{-3}", 1),
        ("-3", r"\boxed{3}", 0),
        ("1/2", r"$\frac{1}{2}$", 1),
        (r"\frac{1}{2}", "it is 2/4", 1),
        ("1/2", "0.5", 1),
        ("1/3", "0.333", 0),
        (r"$x+1$", "$1 + x$", 1),
        ("1024", "$2^{10}$", 1),
        (r"\{1,2\}", r"$\{2,1\}$", 1),
        ("50%", r"$50\%$", 1),
        ("5", r"first $7$, then \boxed{5}, not $6$", 1),
        ("5", "<think>$7$ or 5</think>\\boxed{5}", 1),
        ("7", "<think>$7$</think>I do not know", 0),
        ("5", "no number at all", 0),
        ("5", "", 0),
        (["6", "5"], "5", 1),
        ("", "5", None),
        ("(((", "5", None),
    ],
)
def test_math_accuracy(answer, text, expected, completion):
    assert MathAccuracy()([completion(text, answer=answer)]) == [expected]


def test_what_takes_too_long_to_compare_is_wrong(completion):
    begun = time.monotonic()
    assert MathAccuracy(seconds=1)([completion("$9^{9^{9^9}}$", answer="72")]) == [0.0]
    assert time.monotonic() - begun < 20


def test_text_is_not_evaluated(completion, tmp_path, monkeypatch):
    """sympy's parse_expr evaluates Python. Neither it nor eval is called for anything that a completion or a row may say."""
    import builtins

    import math_verify.parser

    def refuse(*args, **kwargs):
        raise AssertionError(f"evaluates {args}")

    monkeypatch.setattr(math_verify.parser, "parse_expr", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    file = tmp_path / "made"
    code = f"__import__('pathlib').Path({str(file)!r}).touch()"
    for text in (code, f"${code}$", rf"\boxed{{{code}}}", "(1+2)*3", "$(1+2)*3$", "answer: 2*(3+4)-5"):
        MathAccuracy()([completion(text, answer="9"), completion("9", answer=text)])
    assert not file.exists()


@settings(max_examples=30, deadline=None)
@given(st.integers(-(10**6), 10**6), st.sampled_from(["{}", "${}$", r"\boxed{{{}}}", "<think>1</think>{}", "so it is {}."]))
def test_a_number_is_itself_and_no_other(number, form):
    assert MathAccuracy().score(form.format(number), [str(number)]) == 1.0
    assert MathAccuracy().score(form.format(number), [str(number + 1)]) == 0.0


@pytest.mark.parametrize(
    ("reward", "answer", "text", "expected"),
    [
        (ExactMatch(), "Paris", " Paris\n", 1),
        (ExactMatch(), "Paris", "paris", 0),
        (ExactMatch(ignore_case=True), "Paris", "PARIS", 1),
        (ExactMatch(), ["Rome", "Paris"], "Paris", 1),
        (ExactMatch(), "Paris", "<think>Rome?</think>\n\nParis", 1),
        (ExactMatch(), "Paris", "It is Paris", 0),
        (ExactMatch(pattern=r"####\s*(.+)"), "72", "48+24\n#### 71\n#### 72", 0),
        (ExactMatch(pattern=r"####\s*(\S+)"), "72", "48+24\n#### 71\n#### 72", 1),
        (ExactMatch(pattern=r"\d+"), 72, "48, 24: 72", 1),
        (ExactMatch(pattern=r"\d+"), 72, "none", 0),
        (ExactMatch(pattern=r"a(b)?"), "b", "a", 0),
    ],
)
def test_exact_match(reward, answer, text, expected, completion):
    assert reward([completion(text, answer=answer)]) == [expected]


def test_another_column(completion):
    assert ExactMatch(answer_column="gold")([completion("a", gold="a", answer="b")]) == [1.0]
    assert MathAccuracy(answer_column="gold")([completion("1", gold="1", answer="2")]) == [1.0]


def test_reading():
    assert accepted("a") == ["a"] and accepted(3) == ["3"] and accepted(None) == [] and accepted(["a", None, 2]) == ["a", "2"]
    assert after_think("<think>a</think>b</think>c") == "c" and after_think("a") == "a"


def test_the_contract(completion):
    rows = [
        completion(text, answer=answer) for text, answer in [("1", "1"), ("", "2"), ("$\\frac12$", None), ("é", "é"), ("2", [])]
    ]
    check_reward(ExactMatch, rows)
    check_reward(MathAccuracy, rows)
