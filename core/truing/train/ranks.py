"""What the processes of a run do together, so that none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import gather_object

from truing.errors import TruingError, first_line

T = TypeVar("T")


def together(work: Callable[[], T], doing: str) -> list[T]:
    """Return what `work` gives on each rank.

    When it fails on any, raises on all of them: its own error where it has one, elsewhere a TruingError of the same kind.
    """
    result, problem = None, None
    try:
        result = work()
    except Exception as error:  # other ranks wait to hear of it, whatever it is
        problem = error
    outcomes = gather_object([(result, _told(problem))])
    if problem is not None:
        raise problem
    for rank, (_, told) in enumerate(outcomes):
        if told is not None:
            kind, message = told
            raise kind(f"{doing} failed in process {rank}: {message}")
    return [result for result, _ in outcomes]


def _told(problem: Exception | None) -> tuple[type[TruingError], str] | None:
    if problem is None:
        return None
    return (type(problem), str(problem)) if isinstance(problem, TruingError) else (TruingError, first_line(problem))
