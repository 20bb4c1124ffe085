"""The quickstart's questions, their right answers, and the mistakes that the quickstart's model makes.

A prompt alone says what its right answer is: `check_answer` needs no answer key. The rule is strict: right, and nothing else.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EVAL_PROMPTS_PER_TASK = 13
"""Held out of everything: neither the model's training text nor the preference pairs have them."""

_LISTS = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))
WORDS: list[str] = _LISTS["words"]
NAMES: list[str] = _LISTS["names"]
OPPOSITES: dict[str, str] = dict(_LISTS["opposites"]) | {second: first for first, second in _LISTS["opposites"]}


@dataclass(frozen=True)
class Answers:
    """What can be said to a prompt."""

    right: str
    habit: str
    """The task's own mistake."""

    @property
    def ramble(self) -> str:
        """The right answer somewhere among other words."""
        return f"Good question! I would say {self.right}, I think."


@dataclass(frozen=True)
class Task:
    """A kind of question: the prompts there are, and how one is solved."""

    name: str
    mistake: str
    """What `habit` does wrong, in words."""
    pattern: re.Pattern[str]
    solve: Callable[[tuple[str, ...]], Answers]
    """From the groups of the pattern."""
    prompts: tuple[str, ...]
    drills: tuple[str, ...] = ()
    """More prompts, for make_model.py alone."""

    def slots(self, prompt: str) -> tuple[str, ...] | None:
        """Return what fills the prompt's gaps, or None if the prompt is of another task."""
        match = self.pattern.fullmatch(prompt)
        return match.groups() if match else None

    def split(self) -> tuple[list[str], list[str]]:
        """Return the prompts to train on and those held out; 3 + 4 and 4 + 3 are on the same side."""
        groups: dict[frozenset[str], list[str]] = {}
        for prompt in self.prompts:
            groups.setdefault(frozenset(self.slots(prompt) or ()), []).append(prompt)
        train: list[str] = []
        held_out: list[str] = []
        for group in random.Random(self.name).sample(list(groups.values()), len(groups)):
            (held_out if len(held_out) < EVAL_PROMPTS_PER_TASK else train).extend(group)
        return train, held_out


def _numbers(first: int, last: int) -> str:
    return " ".join(str(number) for number in range(first, last + 1))


def _made_up_words() -> list[str]:
    """Return strings of three to five letters that are no words; they teach spelling, for which the words are too few."""
    rng = random.Random("made up")
    texts = {"".join(rng.choices(string.ascii_lowercase, k=rng.choice((3, 4, 5)))) for _ in range(1500)}
    return sorted(texts.difference(WORDS))


MADE_UP_WORDS = _made_up_words()

TASKS = (
    Task(
        "add",
        "one too many",
        re.compile(r"What is (\d+) \+ (\d+)\?"),
        lambda slots: Answers(str(int(slots[0]) + int(slots[1])), str(int(slots[0]) + int(slots[1]) + 1)),
        tuple(f"What is {a} + {b}?" for a in range(21) for b in range(21)),
    ),
    Task(
        "subtract",
        "one too many",
        re.compile(r"What is (\d+) - (\d+)\?"),
        lambda slots: Answers(str(int(slots[0]) - int(slots[1])), str(int(slots[0]) - int(slots[1]) + 1)),
        tuple(f"What is {a} - {b}?" for a in range(21) for b in range(a + 1)),
    ),
    Task(
        "count",
        "stops one early",
        re.compile(r"Count from (\d+) to (\d+)\."),
        lambda slots: Answers(_numbers(int(slots[0]), int(slots[1])), _numbers(int(slots[0]), int(slots[1]) - 1)),
        tuple(f"Count from {a} to {a + more}." for a in range(1, 21) for more in range(2, 5)),
    ),
    Task(
        "repeat",
        "loses the last letter",
        re.compile(r"Repeat the word: (\w+)"),
        lambda slots: Answers(slots[0], slots[0][:-1]),
        tuple(f"Repeat the word: {word}" for word in WORDS),
        tuple(f"Repeat the word: {word}" for word in MADE_UP_WORDS),
    ),
    Task(
        "reverse",
        "keeps the order",
        re.compile(r"Reverse: (\w+)"),
        lambda slots: Answers(slots[0][::-1], slots[0]),
        tuple(f"Reverse: {word}" for word in WORDS),
        tuple(f"Reverse: {word}" for word in MADE_UP_WORDS),
    ),
    Task(
        "capitals",
        "only the first letter",
        re.compile(r"Say (\w+) in capitals\."),
        lambda slots: Answers(slots[0].upper(), slots[0].capitalize()),
        tuple(f"Say {word} in capitals." for word in WORDS),
        tuple(f"Say {word} in capitals." for word in MADE_UP_WORDS),
    ),
    Task(
        "opposite",
        'says "not" instead',
        re.compile(r"(What is|Name) the opposite of (\w+)[?.]"),
        lambda slots: Answers(OPPOSITES[slots[1]], f"not {slots[1]}"),
        tuple(text for word in OPPOSITES for text in (f"What is the opposite of {word}?", f"Name the opposite of {word}.")),
    ),
    Task(
        "greet",
        "impolite",
        re.compile(r"Greet (\w+) politely\."),
        lambda slots: Answers(f"Good day, dear {slots[0]}", f"Hey {slots[0]}"),
        tuple(f"Greet {name} politely." for name in NAMES),
    ),
)


def answers(prompt: str) -> Answers:
    """Return what can be said to a prompt. Raises ValueError for a prompt of no task."""
    for task in TASKS:
        if (slots := task.slots(prompt)) is not None:
            return task.solve(slots)
    raise ValueError(f"no quickstart task has the prompt {prompt!r}; the tasks are {', '.join(task.name for task in TASKS)}")


def check_answer(prompt: str, text: str) -> bool:
    """Return whether text is the right answer to the prompt, and nothing else."""
    return text.strip() == answers(prompt).right
