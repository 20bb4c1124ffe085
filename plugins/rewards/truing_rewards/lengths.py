"""Rewards for how long a completion is, and how often it repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs

from truing import Completion, Reward, setting
from truing_rewards.answers import MathAccuracy
from truing_rewards.reading import Unit, accepted, column, length


@attrs.frozen(kw_only=True)
class Length(Reward):
    """1 for the length that is wanted, falling linearly to 0 with the distance from it, in units of `target`.

    With n the length and t the target: near gives max(0, 1 - |n - t| / t); at_most gives 1 up to t, and the same beyond it;
    at_least gives min(1, n / t).
    """

    name: ClassVar[str] = "length"

    target: int = setting(gt=0, help="The length that is wanted.")
    unit: Unit = setting("tokens", help="What is counted: tokens, the end token included, words or characters.")
    aim: Literal["near", "at_most", "at_least"] = setting("near", help="Which lengths are right.")

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return a number from 0 to 1 for each."""
        return [self._score(length(completion, self.unit)) for completion in completions]

    def _score(self, found: int) -> float:
        if (self.aim == "at_most" and found <= self.target) or (self.aim == "at_least" and found >= self.target):
            return 1.0
        return max(0.0, 1 - abs(found - self.target) / self.target)


@attrs.frozen(kw_only=True)
class CosineLength(Reward):
    """More for a right answer that is short, less for a wrong one that is short (Yeo et al. 2025, arXiv:2502.03373).

    With n tokens of L, r(n) = r_L + (r_0 - r_L) (1 + cos(pi n / L)) / 2: from r_0 at no token to r_L at L, of the right or of the
    wrong answers. A completion of L tokens or more, or one that was cut, gets `exceeded`. Answers are judged as `math_accuracy`
    does; None where it gives None.
    """

    name: ClassVar[str] = "cosine_length"

    max_length: int = setting(gt=0, help="L: the number of tokens that a completion must stay below.")
    right_at_zero: float = setting(1.0, help="r_0 of right answers.")
    right_at_limit: float = setting(0.5, help="r_L of right answers.")
    wrong_at_zero: float = setting(-1.0, help="r_0 of wrong answers.")
    wrong_at_limit: float = setting(-0.5, help="r_L of wrong answers.")
    exceeded: float = setting(-1.0, help="For a completion that reaches the limit.")
    answer_column: str = setting("answer", help="Column with the answer, or a list of accepted ones.")
    seconds: int = setting(5, gt=0, help="Most seconds that comparing one answer may take.")

    def prepare(self) -> None:
        """Import what reads mathematics."""
        self._judge.prepare()

    @property
    def _judge(self) -> MathAccuracy:
        return MathAccuracy(answer_column=self.answer_column, seconds=self.seconds)

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the score of each, None without a readable answer."""
        answers = map(accepted, column(self.name, self.answer_column, completions))
        return [self._score(completion, answer) for completion, answer in zip(completions, answers, strict=True)]

    def _score(self, completion: Completion, answers: Sequence[str]) -> float | None:
        right = self._judge.score(completion.text, answers)
        if right is None:
            return None
        tokens = length(completion, "tokens")
        if tokens >= self.max_length or completion.finish_reason == "length":
            return self.exceeded
        start, end = (self.right_at_zero, self.right_at_limit) if right else (self.wrong_at_zero, self.wrong_at_limit)
        return end + (start - end) * (1 + math.cos(math.pi * tokens / self.max_length)) / 2


@attrs.frozen(kw_only=True)
class SoftOverlong(Reward):
    """0 for a completion that leaves the buffer free, down to -1 for one that fills it (DAPO, Yu et al. 2025, arXiv:2503.14476).

    With n tokens, L = `max_length` and c = `buffer`: 0 for n <= L - c, ((L - c) - n) / c in between, -1 for n > L.
    """

    name: ClassVar[str] = "soft_overlong"

    max_length: int = setting(gt=0, help="L: tokens at which the penalty is whole; the rollout's max_completion_length.")
    buffer: int | None = setting(None, gt=0, help="c: tokens below L over which it grows; null is a fifth of L, as in the paper.")

    def __attrs_post_init__(self) -> None:
        if self.buffer is not None and self.buffer > self.max_length:
            raise ValueError(f"buffer must be at most max_length ({self.max_length}), got {self.buffer}")

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return a number from -1 to 0 for each."""
        buffer = self.buffer or max(1, self.max_length // 5)
        excess = [length(completion, "tokens") - (self.max_length - buffer) for completion in completions]
        return [max(-1.0, min(0.0, -tokens / buffer)) for tokens in excess]


@attrs.frozen(kw_only=True)
class RepetitionPenalty(Reward):
    """`max_penalty` times the share of n-grams that were there before; after Yeo et al. 2025, arXiv:2502.03373.

    That is max_penalty (1 - different / all), of the n-grams of words, lower case, or of tokens; 0 where a completion has none.
    """

    name: ClassVar[str] = "repetition_penalty"

    ngram: int = setting(3, gt=0, help="n.")
    max_penalty: float = setting(-1.0, le=0, help="The score of a text that is nothing but repetition, in the limit.")
    unit: Literal["words", "tokens"] = setting("words", help="What n-grams are made of.")

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return a number from max_penalty to 0 for each."""
        return [self._score(completion) for completion in completions]

    def _score(self, completion: Completion) -> float:
        parts = completion.token_ids if self.unit == "tokens" else tuple(completion.text.lower().split())
        ngrams = [parts[start : start + self.ngram] for start in range(len(parts) - self.ngram + 1)]
        return -self.max_penalty * (len(set(ngrams)) / len(ngrams) - 1) if ngrams else 0.0
