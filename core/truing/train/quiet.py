"""Keeps what libraries warn each other of from whoever trains: none of it is the user's to mend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_BETWEEN_LIBRARIES = r"(accelerate|peft|transformers)\."
_SCHEDULE_FIRST = r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out deprecations within libraries, and torch's remark on the schedule where a run's first step is skipped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=_BETWEEN_LIBRARIES)
        warnings.filterwarnings("ignore", message=_SCHEDULE_FIRST, category=UserWarning)
        yield
