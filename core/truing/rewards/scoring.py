"""Reading what a reward returns: numbers, None, or what was wrong."""

from __future__ import annotations

import inspect
import math
import sys
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from truing.errors import PluginError, TruingError
from truing.rewards.contract import Reward
from truing.rollout.completion import Completion

LARGEST_SCORE = 1e15
"""Beyond this a score is nonsense: in single precision, in which advantages may be computed, its square would be near infinity."""


LONGEST_FAULT = 500
_NOT_THE_USERS = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), "<")


@attrs.frozen
class Outcome:
    """What one call gave: a score or None for each completion, and what was wrong with those that have none for a fault."""

    scores: tuple[float | None, ...]
    faults: Mapping[int, str] = attrs.field(factory=dict)


def read_outcome(name: str, result: Any, count: int) -> Outcome:
    """Return the scores of `count` completions, and the fault of each value that is not a number.

    Raises PluginError where the result is no list, or not one of `count` values: then nobody knows which score is whose.
    """
    try:
        given = None if isinstance(result, (str, bytes, Mapping)) else len(result)
    except TypeError:  # a number or a generator; an array without dimensions has a length that cannot be asked for
        given = None
    if given is None:
        raise PluginError(f"reward {name!r} must return a list with a number or None for each completion, got {_show(result)}")
    if given != count:
        raise PluginError(f"reward {name!r} returned {given} scores for {count} completions; one for each is needed")
    scores: list[float | None] = []
    faults = {}
    for index, value in enumerate(result):
        try:
            scores.append(_read_score(name, index, value))
        except PluginError as error:
            scores.append(None)
            faults[index] = str(error)
    return Outcome(tuple(scores), faults)


def score(reward: Reward, completions: Sequence[Completion]) -> list[float | None]:
    """Return the reward's score of each completion, checked, in this thread and without a deadline.

    An `async def` reward is run to its end, within a running event loop too. Raises PluginError that says what was wrong: not as
    many results as completions, a result that is not a number, or one that is not finite or beyond LARGEST_SCORE.
    """
    result: Any = reward(completions)
    if inspect.isawaitable(result):
        result = _run(result)
    outcome = read_outcome(reward.name, result, len(completions))
    for fault in outcome.faults.values():
        raise PluginError(fault)
    return list(outcome.scores)


def describe_fault(error: BaseException) -> str:
    """Return an error of a user's code as "Type: message (file:line)", where it came from."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = f"{type(error).__name__} without a message that can be read"
    if isinstance(error, TruingError):
        return str(error)[:LONGEST_FAULT]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return text[:LONGEST_FAULT].encode(errors="replace").decode() + where  # a lone surrogate could not be sent or written


def _read_score(name: str, index: int, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise PluginError(f"reward {name!r} returned {_show(value)} for completion {index}; a score is a number or None")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # an array of several numbers, for one
        raise PluginError(
            f"reward {name!r} returned {_show(value)} for completion {index}, which is not one number ({error})"
        ) from error
    if not math.isfinite(number):
        raise PluginError(f"reward {name!r} returned {number} for completion {index}; return None where it does not apply")
    if abs(number) > LARGEST_SCORE:
        raise PluginError(
            f"reward {name!r} returned {number:g} for completion {index}; a score is at most {LARGEST_SCORE:g} in size, or None"
        )
    return number


def _run(awaitable: Awaitable[Any]) -> Any:
    """Run to the end; in a thread of its own when this one has a running loop, as notebooks do."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()


def _show(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
