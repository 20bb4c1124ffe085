"""Keeps what libraries say from whoever trains: warnings to each other, none of them the user's to mend, and bars."""

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


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Leave the terminal to a command: as `quiet_libraries`, and no bars for loading and saving models."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet_libraries():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
