"""SIGINT and SIGTERM end a run at the next step boundary, after saving; SIGUSR1 saves and lets it go on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from truing.errors import TruingError
from truing.train.restarts import launch

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAVING = signal.SIGUSR1
ECHO_SECONDS = 5.0
"""Within them a launched process takes a second signal to stop for the first: who stops a job may send it to all of its processes,
and the launcher hands on what it got itself."""
_ORDER = (0, SAVING, *STOPPING)
"""What ranks were sent, by what outweighs what."""


class Interrupted(TruingError):
    """A signal stopped the run; its state is saved. Exits with 128 + the signal's number: 130 or 143."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {checkpoint}; continue with --resume")
        self.exit_code = 128 + number


class Stopped(TruingError):
    """A signal stopped the run before its first step. Exits with 128 + the signal's number: 130 or 143."""

    exit_code = 128 + signal.SIGTERM

    @classmethod
    def by(cls, number: int) -> Stopped:
        """Return the error for a signal."""
        error = cls(f"stopped by {signal.Signals(number).name} before the first step; there was nothing to save")
        error.exit_code = 128 + number
        return error


class InterruptSignal:
    """Notes a signal, so that the step in progress can end; a second one to stop acts at once, as without this class.

    In a process of a launcher it does so `ECHO_SECONDS` after the first.

    SIGUSR1 asks for a checkpoint only, and the run goes on. It is noted from the beginning, the others from `note_stops` on: before
    there is anything to save they end the run at once.
    """

    def __init__(self) -> None:
        # one for each, for a handler may run between reading and writing what another one noted
        self._stop_number = 0
        self._save_asked = False
        self._stopped_at = 0.0
        self._raises = False
        self._before: dict[int, Any] = {}
        self._mask: set[int] = set()
        """What was blocked before, as the program does with SIGUSR1 until it is noted."""

    def __enter__(self) -> InterruptSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._before[SAVING] = signal.signal(SAVING, self._save)
            self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {SAVING})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SAVING} & self._mask)
        self._put_back(*self._before)

    def note_stops(self) -> None:
        """Note SIGINT and SIGTERM too from now on."""
        if threading.current_thread() is threading.main_thread():
            self._before |= {number: signal.signal(number, self._stop) for number in STOPPING}

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise Stopped for a signal to stop wherever the block is, so that nothing is waited for and what it opened is closed."""
        self._raises = True
        try:
            yield
            if self._stop_number:  # raised where Python drops exceptions, as in a destructor
                raise Stopped.by(self._stop_number)
        finally:
            self._raises = False

    def received(self, accelerator: Accelerator) -> int:
        """Return the signal that any rank was sent, or 0, a stop before a save; all ranks learn of it at the same step."""
        number = self._stop_number or (SAVING if self._save_asked else 0)
        if accelerator.num_processes > 1:
            # what is noted while ranks exchange is for the next step, and must not be overwritten by what they agree on now
            noted = torch.tensor([_ORDER.index(number)], device=accelerator.device)
            number = _ORDER[int(accelerator.gather(noted).max())]
        if number == SAVING:
            self._save_asked = False
        return number

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._stop_number:  # in a launched process, for in another the first gave the signals back
            if time.monotonic() - self._stopped_at >= ECHO_SECONDS:
                self._give_stops_back()
                signal.raise_signal(number)
            return
        self._stop_number, self._stopped_at = number, time.monotonic()
        if launch() is None:
            self._give_stops_back()
        if self._raises:
            raise Stopped.by(number)

    def _give_stops_back(self) -> None:
        self._put_back(*(stopping for stopping in STOPPING if stopping in self._before))

    def _save(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._save_asked = True

    def _put_back(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._before.pop(number))
