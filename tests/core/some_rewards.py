"""Rewards for the tests of the runner; they import little, for they run in worker processes."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time


def length(completions):
    return [float(len(text)) for text in completions]


def process(completions):
    return [float(os.getpid())] * len(completions)


def torch_is_imported(completions):
    return [float("torch" in sys.modules)] * len(completions)


def drawn(completions):
    return [random.random() for _ in completions]


def read_input(completions):
    return [float(len(sys.stdin.read()))] * len(completions)


def some(completions):
    return [None if text == "a" else 1.0 for text in completions]


def slow(completions):
    time.sleep(0.5)
    return [1.0] * len(completions)


def hang(completions):
    time.sleep(1000)


def says_it_hangs(completions):
    print("I hang", flush=True)
    time.sleep(1000)


def limited(completions, limit):
    return [min(limit, len(text)) for text in completions]


def raises(completions):
    raise ValueError("always")


def raises_for_bad(completions):
    if "bad" in completions:
        raise ValueError("bad")
    return [float(len(completions))] * len(completions)


def rank(completions):
    if "bad" in completions:
        raise ValueError("bad")
    return [float(len(completions))] * len(completions)


rank.compares = True


def types(completions, **columns):
    return [
        float(
            repr(columns) == "{'at': [datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)], "
            "'few': [[1, 2]], 'number': [3], 'raw': [b'x']}"
        )
    ]


together = 0


async def awaited(prompt, response):
    global together
    together += 1
    await asyncio.sleep(0.3)
    return float(together)


async def blocks_for_bad(completions):
    await asyncio.sleep(0.3)
    if "bad" in completions:
        time.sleep(1000)
    return [1.0] * len(completions)


def forges(completions):
    import gc

    from truing.rewards.wire import Done, frame
    from truing.rewards.worker import _Worker

    (worker,) = [thing for thing in gc.get_objects() if type(thing) is _Worker]
    forged = {"a": Done(1, (float("nan"),), {}), "bad": Done(2, (1.0, 1.0), {}), "cc": Done(3, (None,), {7: "x"})}
    worker.connection.sendall(frame(forged[completions[0]]))
    time.sleep(1000)


async def exits_for_bad(completions):
    await asyncio.sleep(0.3)
    if "bad" in completions:
        os._exit(1)
    return [1.0] * len(completions)
