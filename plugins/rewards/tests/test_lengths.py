"""Lengths, by hand.

length, target 4: 3 tokens are 1 off, 1 - 1/4; 10 are 6 off, below 0.
cosine_length, L = 6: cos(0) = 1, cos(2 pi / 6) = 1/2, cos(3 pi / 6) = 0. With r_0 = 1 and r_L = 1/2 that is 1, 1/2 + 1/2 3/4 = 7/8
and 3/4; with the wrong answers' -1 and -1/2 it is -1, -7/8 and -3/4.
soft_overlong, L = 10, c = 4: free up to 6; 7 is -1/4, 10 is -1.
repetition_penalty: "a b a b a" has the pairs ab ba ab ba, 2 of 4 different; 1 - 2/4 = 1/2.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.testing import check_reward
from truing_rewards import CosineLength, Length, RepetitionPenalty, SoftOverlong


@pytest.mark.parametrize(
    ("aim", "scores"),
    [("near", [0, 0.75, 1, 0.5, 0, 0]), ("at_most", [1, 1, 1, 0.5, 0, 0]), ("at_least", [0, 0.75, 1, 1, 1, 1])],
)
def test_length(aim, scores, completion):
    rows = [completion("x", tokens=tokens) for tokens in (0, 3, 4, 6, 8, 10)]
    assert Length(target=4, aim=aim)(rows) == pytest.approx(scores)


def test_units(completion):
    one = completion("ab  cd e", tokens=6)
    assert Length(target=12, aim="at_least")([one]) == [0.5]
    assert Length(target=6, unit="words", aim="at_least")([one]) == [0.5]
    assert Length(target=16, unit="characters", aim="at_least")([one]) == [0.5]
    with_tools = attrs.evolve(one, loss_mask=(True, True, True, False, False, False))
    assert Length(target=12, aim="at_least")([with_tools]) == [0.25]


@pytest.mark.parametrize(
    ("tokens", "right", "wrong"), [(0, 1, -1), (2, 7 / 8, -7 / 8), (3, 3 / 4, -3 / 4), (6, -1, -1), (7, -1, -1)]
)
def test_cosine_length(tokens, right, wrong, completion):
    rows = [completion("1", tokens=tokens, answer=answer) for answer in ("1", "2", None)]
    assert CosineLength(max_length=6)(rows) == [pytest.approx(right), pytest.approx(wrong), None]


def test_cosine_length_of_what_was_cut(completion):
    reward = CosineLength(max_length=600, exceeded=-3.0)
    assert reward([completion("1", tokens=2, answer="1", finish="length")]) == [-3.0]


@pytest.mark.parametrize(("tokens", "score"), [(0, 0), (6, 0), (7, -0.25), (9, -0.75), (10, -1), (11, -1)])
def test_soft_overlong(tokens, score, completion):
    (found,) = SoftOverlong(max_length=10, buffer=4)([completion("x", tokens=tokens)])
    assert found == score and str(found) == str(float(score))


def test_the_buffer_is_a_fifth(completion):
    assert SoftOverlong(max_length=20)([completion("x", tokens=tokens) for tokens in (16, 18, 20)]) == [0, -0.5, -1]
    with pytest.raises(ValueError, match=r"buffer must be at most max_length \(4\), got 5"):
        SoftOverlong(max_length=4, buffer=5)


@pytest.mark.parametrize(
    ("text", "ngram", "score"),
    [("a b a b a", 2, -0.5), ("A b a B a", 2, -0.5), ("a b c", 2, 0), ("a", 2, 0), ("", 1, 0), ("a a a a", 1, -0.75)],
)
def test_repetition_penalty(text, ngram, score, completion):
    (found,) = RepetitionPenalty(ngram=ngram)([completion(text)])
    assert found == score and str(found) == str(float(score))
    assert RepetitionPenalty(ngram=ngram, max_penalty=-2.0)([completion(text)]) == [2 * score]


def test_repetition_of_tokens(completion):
    assert RepetitionPenalty(ngram=1, unit="tokens")([completion("abcb"), completion("", tokens=4)]) == [-0.25, -0.75]


@given(st.integers(0, 400), st.integers(1, 100), st.integers(1, 100))
def test_bounds_and_order(tokens, limit, buffer):
    from truing import Completion

    def of(length):
        return Completion(request_id="r", index=0, prompt_ids=(1,), token_ids=(1,) * length, finish_reason="stop")

    shorter, longer = SoftOverlong(max_length=limit, buffer=min(buffer, limit))([of(tokens), of(tokens + 1)])
    assert -1 <= longer <= shorter <= 0
    (near,), (most,), (least,) = (Length(target=limit, aim=aim)([of(tokens)]) for aim in ("near", "at_most", "at_least"))
    assert 0 <= near == min(most, least) <= 1 == max(most, least)


@pytest.mark.parametrize("reward", [Length(target=3), SoftOverlong(max_length=5), RepetitionPenalty()], ids=lambda one: one.name)
def test_the_contract(reward):
    check_reward(reward)


def test_the_contract_of_cosine_length(completion):
    check_reward(CosineLength(max_length=5), [completion(text, answer="1") for text in ("1", "one", "11111111", "")])
