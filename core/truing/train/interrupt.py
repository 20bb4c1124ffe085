"""SIGINT and SIGTERM end a run at the next step boundary, after saving; SIGUSR1 saves and lets it go on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from truing.errors import TruingError

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAVING = signal.SIGUSR1
_ORDER = (0, SAVING, *STOPPING)
"""What ranks were sent, by what outweighs what."""


class Interrupted(TruingError):
    """A signal stopped the run; its state is saved. Exits with 128 + the signal's number: 130 or 143."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {checkpoint}; continue with --resume")
        self.exit_code = 128 + number


class InterruptSignal:
    """Notes a signal, so that the step in progress can end; a second one to stop acts at once, as without this class.

    SIGUSR1 asks for a checkpoint only, and the run goes on. It is noted from the beginning, the others from `note_stops` on: before
    there is anything to save they end the run at once.
    """

    def __init__(self) -> None:
        # one for each, for a handler may run between reading and writing what another one noted
        self._stop_number = 0
        self._save_asked = False
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
        self._stop_number = number
        self._put_back(*(stopping for stopping in STOPPING if stopping in self._before))

    def _save(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._save_asked = True

    def _put_back(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._before.pop(number))
