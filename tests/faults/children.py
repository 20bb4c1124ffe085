"""Children of a test: forked from this process, which has imported everything, or real programs; signalled and waited for.

Nothing that a child may change is shared with its parent but files. A child runs with one thread of torch, for a pool of threads
does not survive a fork.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import attrs
import torch

import truing.cli.train
import truing.train.loop
import truing_transformers.live
from truing.cli import main
from truing.registry import Registry

IMPORTED = (truing.cli.train, truing.train.loop, truing_transformers.live, Registry.load())
"""What a child need not import again; the registry imports all plugins."""
SECONDS = 120.0
"""What a child may take altogether; nearly all take one."""
BROKEN = 99
"""Exit code of a child that raised something else than SystemExit."""

running: dict[int, Child] = {}
"""Children that nobody has waited for yet, by process id."""


@attrs.frozen
class Ended:
    """A child that has ended."""

    code: int
    """Exit code, or minus the signal that killed it."""
    output: str
    errors: str

    @property
    def said(self) -> str:
        """Everything that it wrote, for a message."""
        return f"exit code {self.code}\n{self.output}\n{self.errors}"


@attrs.frozen(eq=False)
class Child:
    """A child that may be running still."""

    pid: int
    output: Path
    errors: Path

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it ends within some seconds."""
        ends = os.pidfd_open(self.pid)
        try:
            return bool(select.select([ends], [], [], seconds)[0])
        finally:
            os.close(ends)

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Return how it ended. Kills it and raises AssertionError when that takes too long."""
        in_time = self.has_ended(seconds)
        if not in_time:
            self.send(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        del running[self.pid]
        ended = Ended(os.waitstatus_to_exitcode(status), self.output.read_text(), self.errors.read_text())
        assert in_time, f"still running after {seconds:g} s\n{ended.said}"
        return ended

    def until(self, happened: Callable[[], bool], what: str) -> None:
        """Return when something has happened. Raises AssertionError when the child ends before, or takes too long."""
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert not self.has_ended(0.001) or happened(), f"ended before {what}\n{self.wait().said}"
            assert time.monotonic() < deadline, f"no {what} within {SECONDS:g} s\n{self.output.read_text()}"


def fork(folder: Path, work: Callable[[], object]) -> Child:
    """Start a child that does some work; what it prints goes to files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("output-*")))
    child_output, child_errors = folder / f"output-{number}", folder / f"errors-{number}"
    child_output.touch()
    child_errors.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(work, child_output, child_errors)
    return running.setdefault(pid, Child(pid, child_output, child_errors))


def _become(work: Callable[[], object], output: Path, errors: Path) -> NoReturn:
    code = BROKEN
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for path, descriptor in ((output, 1), (errors, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def truing_child(
    folder: Path, *arguments: object, before: Callable[[], object] | None = None, real: bool = False, **environment: str
) -> Child:
    """Start the command line: in a fork, after `before`, or as a program of its own."""
    words = [str(argument) for argument in arguments]

    def work() -> None:
        os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment})
        if real:
            os.execv(sys.executable, [sys.executable, "-m", "truing", *words])
        if before is not None:
            before()
        main(words, prog_name="truing")

    assert not (real and before), "nothing can be done within another program before it begins"
    return fork(folder, work)
