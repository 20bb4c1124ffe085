"""Processes of one launcher, which fail and are interrupted together: one of them says why."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 1.0
"""What the first rank, which has the progress bar, is given to speak before the others."""


def rank() -> int | None:
    """Return which process of a launcher this is; None where there is no launcher."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isdecimal() else None


def die_of_interrupts() -> None:
    """Let Ctrl-C end a launched process at once until training handles it.

    Python would raise KeyboardInterrupt wherever it is, and drop it within a destructor, of which importing transformers runs
    thousands: this rank would then wait for the others, which are gone.
    """
    if rank() is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def hold_requests_to_save() -> None:
    """Let SIGUSR1 wait until training notes it, rather than kill a program that still imports what it needs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def failed_before(exit_code: int) -> int | None:
    """Return the exit code of the process of this launcher that failed first; None when this is the one, or there is no launcher.

    The others mostly fail because the first did. They share the folder of torchrun's error files, made anew for every start.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # .../attempt_0/<rank>/error.json
    if not error_file:
        return None
    if rank():
        time.sleep(GRACE_SECONDS)
    note = Path(error_file).parents[1] / "truing-failed"
    own = note.with_name(f"{note.name}-{os.getpid()}")
    try:
        own.write_text(str(exit_code))
        os.link(own, note)  # with its text in it at once, for the others read it
    except FileExistsError:
        return int(note.read_text())
    except OSError:  # a folder that is gone or full: better said twice than never
        return None
    finally:
        with suppress(OSError):
            own.unlink()
    return None
