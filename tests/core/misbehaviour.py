"""Rewards that do what rewards should not: those that can tell are right but for a completion that says "bad"."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from typing import ClassVar

import attrs

RIGHT = 1.0


@attrs.frozen(kw_only=True)
class Behaves:
    """A plugin's reward, in a module that imports little: the share of one letter."""

    name: ClassVar[str] = "behaves"
    letter: str = "a"

    def __call__(self, completions):
        return [one.text.count(self.letter) / max(1, len(one.text)) for one in completions]


def scores(completions):
    return [RIGHT] * len(completions)


def unless_bad(act):
    def reward(completions):
        if "bad" in completions:
            act()
        return scores(completions)

    return reward


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def fail(error):
    raise error


raises = unless_bad(lambda: fail(ValueError("no such answer")))
raises_without_words = unless_bad(lambda: fail(SilentError()))
raises_what_cannot_be_sent = unless_bad(lambda: fail(ValueError("\ud800")))
interrupts_itself = unless_bad(lambda: fail(KeyboardInterrupt()))
exits = unless_bad(lambda: sys.exit(0))
exits_hard = unless_bad(lambda: os._exit(0))
crashes = unless_bad(lambda: ctypes.string_at(0))
is_killed = unless_bad(lambda: os.kill(os.getpid(), signal.SIGKILL))
hangs = unless_bad(lambda: time.sleep(1000))
hangs_in_c = unless_bad(lambda: re.fullmatch("(a+)+b", "a" * 60))
allocates = unless_bad(lambda: bytearray(2**30))
recurses = unless_bad(lambda: recurses(["bad"]))
closes_everything = unless_bad(lambda: os.closerange(0, 100))
writes_everywhere = unless_bad(lambda: [write_to(descriptor) for descriptor in range(100)])
leaves_a_child = unless_bad(lambda: subprocess.Popen(["sleep", "1000"], start_new_session=False))


def write_to(descriptor):
    with contextlib.suppress(OSError):
        os.write(descriptor, b"\0\0\0\3abc")


def wrong_values(value):
    def reward(completions):
        return [value if text == "bad" else RIGHT for text in completions]

    return reward


text_for_a_score = wrong_values("1.0")
list_for_a_score = wrong_values([1.0])
nan = wrong_values(float("nan"))
infinity = wrong_values(float("inf"))
minus_infinity = wrong_values(float("-inf"))
absurd = wrong_values(3e38)


def wrong_result(result):
    def reward(completions):
        return result

    return reward


text = wrong_result("123")
nothing = wrong_result(None)
boolean = wrong_result(True)
mapping = wrong_result({0: 1.0, 1: 1.0, 2: 1.0})
scalar = wrong_result(1.0)


def too_few(completions):
    return [RIGHT]


def too_many(completions):
    return [*scores(completions), RIGHT]


def matrix(completions):
    import numpy as np

    return np.ones((len(completions), 2))


def tensor(completions):
    """What some libraries compute scores in: a number for each completion, which is as good as a list."""
    import torch

    return torch.full((len(completions),), RIGHT)


def tensor_of_no_dimension(completions):
    import torch

    return torch.tensor(RIGHT)


def tensor_of_rows(completions):
    import torch

    return torch.ones(len(completions), 2)


def generator(completions):
    return (RIGHT for _ in completions)


def mutates(prompts, completions, answer):
    result = scores(completions)
    for column in answer:
        column.append("spoilt")
    completions.clear()
    prompts.clear()
    return result


def prints(completions):
    if "bad" in completions:
        for _ in range(100):
            print("x" * 2**20)
    return scores(completions)


async def async_text(completions):
    await asyncio.sleep(0)
    return "123"


async def async_raises(prompt, response):
    await asyncio.sleep(0.01)
    if response == "bad":
        raise ValueError("no such answer")
    return RIGHT


async def async_hangs(completions):
    if "bad" in completions:
        await asyncio.sleep(1000)
    return scores(completions)


async def async_exits_hard(completions):
    await asyncio.sleep(0.2)
    if "bad" in completions:
        os._exit(1)
    return scores(completions)


async def async_exits(completions):
    if "bad" in completions:
        sys.exit(1)
    return scores(completions)


async def blocks(completions):
    time.sleep(1000)
