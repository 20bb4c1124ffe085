"""What the processes of a run do together, so that none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import gather_object

from truing.errors import RolloutError, TruingError, first_line

T = TypeVar("T")


def together(work: Callable[[], T], doing: str) -> list[T]:
    """Return what `work` gives on each rank.

    When it fails on any, all ranks raise an error of one kind, so that they go on alike: RolloutError if it is one anywhere, and
    else that of the first rank that failed, TruingError where it is none of those. One process alone raises its own.
    """
    result, problem = None, None
    try:
        result = work()
    except Exception as error:  # other ranks wait to hear of it, whatever it is
        problem = error
    outcomes = gather_object([(result, _told(problem))])
    failed = [(rank, *told) for rank, (_, told) in enumerate(outcomes) if told is not None]
    if not failed:
        return [result for result, _ in outcomes]
    rank, kind, message = next((one for one in failed if one[1] is RolloutError), failed[0])
    if problem is not None and (len(outcomes) == 1 or type(problem) is kind):
        raise problem
    raise kind(f"{doing} failed in process {rank}: {message}") from problem


def _told(problem: Exception | None) -> tuple[type[TruingError], str] | None:
    if problem is None:
        return None
    return (type(problem), str(problem)) if isinstance(problem, TruingError) else (TruingError, first_line(problem))
