"""Rewards for the form of a completion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs

from truing import Completion, Reward, setting
from truing_rewards.answers import check_pattern


@attrs.frozen(kw_only=True)
class FormatThink(Reward):
    """1 for `<think>thoughts</think>answer`, with neither part empty and no other such tag; 0 elsewhere.

    With `answer_tag` the answer must stand in `<answer>...</answer>` and nothing but space around it. With `opened_by_prompt` the
    prompt ends in `<think>`, as some chat templates do, and the completion must not open it again.
    """

    name: ClassVar[str] = "format_think"

    tag: str = setting("think", help="Word of the tags around the thoughts.")
    answer_tag: str | None = setting(None, help="Word of the tags around the answer; null for none.")
    opened_by_prompt: bool = setting(False, help="Whether the prompt ends with the opening tag.")

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 or 0 for each."""
        return [float(self._fits(completion.text.strip())) for completion in completions]

    def _fits(self, text: str) -> bool:
        if self.opened_by_prompt:
            text = f"<{self.tag}>{text}"
        thoughts, closing, answer = text.partition(f"</{self.tag}>")
        if not closing or not _is_within(thoughts, self.tag):
            return False
        answer = answer.strip()
        if self.answer_tag is None:
            return bool(answer) and not _has_tag(answer, self.tag)
        body, closing, rest = answer.partition(f"</{self.answer_tag}>")
        return bool(closing) and not rest and _is_within(body, self.answer_tag) and not _has_tag(body, self.tag)


def _is_within(text: str, tag: str) -> bool:
    """Return whether a text opens a tag, once, and has something behind it."""
    before, opening, inside = text.partition(f"<{tag}>")
    return not before.strip() and bool(opening) and bool(inside.strip()) and not _has_tag(inside, tag)


def _has_tag(text: str, tag: str) -> bool:
    return f"<{tag}>" in text or f"</{tag}>" in text


@attrs.frozen(kw_only=True)
class Regex(Reward):
    """`score` for a completion that matches a regular expression, 0 for another."""

    name: ClassVar[str] = "regex"

    pattern: str = setting(help="Regular expression of Python's re; . matches line ends too.")
    where: Literal["anywhere", "whole"] = setting("anywhere", help="What must match: some part of the completion, or all of it.")
    ignore_case: bool = setting(False, help="Whether upper and lower case are the same.")
    score: float = setting(1.0, help="What a match is worth; a negative number is a penalty.")

    def __attrs_post_init__(self) -> None:
        check_pattern(self.pattern)

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return `score` or 0 for each."""
        pattern = re.compile(self.pattern, re.DOTALL | (re.IGNORECASE if self.ignore_case else 0))
        match = pattern.fullmatch if self.where == "whole" else pattern.search
        return [self.score if match(completion.text) else 0.0 for completion in completions]
