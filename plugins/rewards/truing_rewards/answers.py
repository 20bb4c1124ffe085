"""Rewards for the right answer: the same text, or the same mathematics."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import ClassVar

import attrs

from truing import Completion, Reward, setting
from truing_rewards.reading import accepted, after_think, column


@attrs.frozen(kw_only=True)
class ExactMatch(Reward):
    """1 where the answer is, but for space around it, one that the row accepts; 0 elsewhere.

    The answer is what follows the last </think>, or the whole completion where there is none; with `pattern`, the last place in it
    that matches: its first group, or all of it. None where the row has no answer.
    """

    name: ClassVar[str] = "exact_match"

    answer_column: str = setting("answer", help="Column with the answer, or a list of accepted ones.")
    pattern: str | None = setting(None, help="Regular expression that finds the answer in a completion; null takes all of it.")
    ignore_case: bool = setting(False, help="Whether upper and lower case are the same.")

    def __attrs_post_init__(self) -> None:
        if self.pattern is not None:
            check_pattern(self.pattern)

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1, 0 or None for each."""
        answers = map(accepted, column(self.name, self.answer_column, completions))
        return [self._score(completion.text, answer) for completion, answer in zip(completions, answers, strict=True)]

    def _score(self, text: str, answers: list[str]) -> float | None:
        if not answers:
            return None
        found = after_think(text)
        if self.pattern is not None:
            matches = list(re.finditer(self.pattern, found, re.DOTALL))
            if not matches:
                return 0.0
            found = (matches[-1][1] if matches[-1].re.groups else matches[-1][0]) or ""
        return float(self._plain(found) in map(self._plain, answers))

    def _plain(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()


@attrs.frozen(kw_only=True)
class MathAccuracy(Reward):
    r"""1 where the answer equals, as mathematics, one that the row accepts; 0 where it does not, or there is none.

    The answer is read after the last </think>: the last LaTeX expression, one in \boxed{} first; without any, the last number or
    fraction. Expressions are read and compared by math-verify, which knows that 1/2, 0.5 and \frac{1}{2} are the same. One that
    takes longer than `seconds` to compare is wrong. None where the row has no answer, or one that cannot be read.
    """

    name: ClassVar[str] = "math_accuracy"

    answer_column: str = setting("answer", help="Column with the answer, or a list of accepted ones; a number, or LaTeX.")
    seconds: int = setting(5, gt=0, help="Most seconds that comparing one answer may take.")

    def prepare(self) -> None:
        """Import what reads mathematics."""
        importlib.import_module("truing_rewards.maths")

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1, 0 or None for each."""
        answers = map(accepted, column(self.name, self.answer_column, completions))
        return [self.score(completion.text, answer) for completion, answer in zip(completions, answers, strict=True)]

    def score(self, text: str, answers: Sequence[str]) -> float | None:
        """Return the score of one completion whose row accepts these answers."""
        from truing_rewards import maths

        golds = [gold for answer in answers if (gold := maths.read_answer(answer, self.seconds))]
        if not golds:
            return None
        found = maths.read_completion(after_think(text), self.seconds)
        return float(any(maths.equal(gold, found, self.seconds) for gold in golds))


def check_pattern(pattern: str) -> None:
    """Raise ValueError, saying where, for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern is no regular expression: {error}, got {pattern!r}") from error
