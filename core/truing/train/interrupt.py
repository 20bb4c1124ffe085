"""SIGINT and SIGTERM end a run at the next step boundary, after saving."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from truing.errors import TruingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(TruingError):
    """A signal stopped the run; its state is saved. Exits with 128 + the signal's number: 130 or 143."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {checkpoint}; continue with --resume")
        self.exit_code = 128 + number


class InterruptSignal:
    """Notes the first signal, so that the step in progress can end; a second one acts at once, as without this class."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InterruptSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._put_back()

    def received(self, accelerator: Accelerator) -> int:
        """Return the signal that any rank was sent, or 0; all ranks learn of it at the same step."""
        if accelerator.num_processes == 1:
            return self.number
        # what is noted while ranks exchange is for the next step, and must not be overwritten by what they agree on now
        noted = torch.tensor([self.number], device=accelerator.device)
        return int(accelerator.gather(noted).max())

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
