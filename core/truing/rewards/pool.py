"""The worker processes of rewards, as the run sees them: started when needed, killed at deadlines, replaced when they die."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import attrs
import msgspec

from truing.errors import ConfigError, TruingError
from truing.rewards.scoring import LARGEST_SCORE, Outcome
from truing.rewards.sources import Source
from truing.rewards.wire import (
    LENGTH_BYTES,
    LONGEST_ANSWER,
    Answer,
    Awaiting,
    Begun,
    Call,
    Done,
    Failed,
    Load,
    Loaded,
    Start,
    frame,
    read_answer,
)
from truing.rewards.worker import COMMAND
from truing.rollout.completion import Completion

LOAD_SECONDS = 120.0
"""How long a worker may take to start and to import rewards; this is no part of a call's deadline."""
GRACE_SECONDS = 0.5
"""How long after its deadline a call's process is killed: what it can say of itself until then is in the log."""
REAP_SECONDS = 5.0
"""How long a killed process may take to be gone."""
LOADING = 0
"""The id of the answer to Load."""
AWAITED_CALLS = 64
"""Most calls of `async def` rewards that one process awaits at once."""


class CallError(TruingError):
    """A call gave no scores; `retry` says whether its completions may be scored one by one."""

    def __init__(self, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.retry = retry


class _BystanderError(Exception):
    """The process of this call died, or was killed, while it awaited others too: nobody knows yet whether for this one."""


class Log(asyncio.Protocol):
    """What workers print, and what failed, in a file; at `limit` bytes a new one begins, and only the one before is kept."""

    def __init__(self, path: Path, limit: int = 5 * 2**20) -> None:
        self.path = path
        self.limit = limit

    def note(self, line: str) -> None:
        """Write a line."""
        self.data_received(f"{line}\n".encode(errors="replace"))

    def data_received(self, data: bytes) -> None:
        """Write what was printed."""
        with contextlib.suppress(OSError):  # a full disk costs the log and nothing else
            if self.path.exists() and self.path.stat().st_size + len(data) > self.limit:
                self.path.replace(self.path.with_suffix(".log.1"))
            with self.path.open("ab") as file:
                file.write(data)


@attrs.define(eq=False)
class _Flight:
    """A call that a worker has: whether it began and is awaited, and what it gave."""

    source: int
    alone: bool
    """Whether no other call may join it."""
    begun: asyncio.Future[None] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())
    answer: asyncio.Future[Loaded | Done] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())
    awaited: bool = False
    retry: bool = True

    def begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def end(self, result: Loaded | Done | Exception) -> None:
        self.begin()
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
            self.answer.exception()  # seen, also where nobody waits any more
        else:
            self.answer.set_result(result)


class _Process:
    """One worker process."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.flights: dict[int, _Flight] = {}
        self.alive = True
        self.blamed = False
        """Whether it is known which call ended it."""
        self.process: subprocess.Popen[bytes] | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.starting = asyncio.create_task(self._start())
        self.reading: asyncio.Task[None] | None = None

    def takes(self, source: int, *, alone: bool) -> bool:
        """Return whether another call may begin there: one at a time, but for those that are all awaited."""
        if not self.flights or alone:
            return not self.flights
        together = source in self.pool.awaited and len(self.flights) < AWAITED_CALLS
        return together and all(flight.awaited and not flight.alone for flight in self.flights.values())

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        path = json.dumps([part for part in sys.path if isinstance(part, str)])
        # a fresh interpreter is safe whatever threads and devices this one has, and does not run the user's script again; in a
        # session of its own, Ctrl-C in a terminal is the run's alone, and what a reward starts can be killed with it
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", COMMAND, str(theirs.fileno()), str(os.getpid()), path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        reader, self.writer = await asyncio.open_unix_connection(sock=ours)
        await self.pool.drain(self.process)
        self.reading = asyncio.create_task(self._read(reader))
        self.writer.write(frame(self.pool.start))

    async def ask(self, number: int, message: bytes, timeout: float, *, source: int = -1, alone: bool = True) -> Loaded | Done:
        """Return the answer. Raises CallError where there is none in time, and _BystanderError."""
        flight = self.flights[number] = _Flight(source, alone)
        limit, doing = LOAD_SECONDS, "loaded"
        try:
            async with asyncio.timeout(limit):
                await self._send(message)
                await flight.begun
            limit, doing = timeout, "answered"
            async with asyncio.timeout(limit + GRACE_SECONDS):
                return await flight.answer
        except TimeoutError:
            shared = len(self.flights) > 1 or not self.alive
            self.blame()
            if shared:  # what is awaited ends at its own deadline, unless another one blocks the process
                raise _BystanderError from None
            raise CallError(f"not {doing} within {limit:g} s, so that its process was killed", retry=flight.retry) from None
        finally:
            del self.flights[number]

    async def _send(self, message: bytes) -> None:
        try:
            await self.starting
        except OSError as error:
            self.kill()
            raise CallError(f"its process cannot be started: {error}", retry=False) from error
        assert self.writer is not None
        with contextlib.suppress(ConnectionError):  # it died, and the reader says of what
            self.writer.write(message)
            await self.writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take in answers until the process ends, or says what no worker says."""
        reason = "sent what is no answer, and was killed"
        try:
            while (length := int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")) <= LONGEST_ANSWER:
                self._take(read_answer(await reader.readexactly(length)))
        except (ConnectionError, asyncio.IncompleteReadError):
            reason = ""
        except msgspec.DecodeError:
            pass
        self._ended(reason)

    def _take(self, answer: Answer) -> None:
        flight = self.flights.get(LOADING if isinstance(answer, Loaded) else answer.id)
        if flight is None:
            return
        if isinstance(answer, Begun):
            flight.retry = not answer.compares
            flight.begin()
        elif isinstance(answer, Awaiting):
            flight.awaited = True
            self.pool.awaited.add(flight.source)
            self.pool.notify()
        elif isinstance(answer, Failed):
            flight.end(CallError(answer.fault, retry=answer.retry))
            if answer.retire:
                self.blame()
        else:
            flight.end(answer)

    def _ended(self, reason: str) -> None:
        """Tell those who wait; a call alone is at fault, if it began, and of several nobody knows which."""
        self.kill()
        assert self.process is not None
        how = reason or _how(self.process.returncode)
        waiting = [flight for flight in self.flights.values() if not flight.answer.done()]
        for flight in waiting:
            at_fault = len(waiting) == 1 and not self.blamed and (flight.begun.done() or flight.alone)
            flight.end(CallError(f"its process {how}", retry=flight.retry) if at_fault else _BystanderError())

    def blame(self) -> None:
        """End the process for a call that is known; what else it awaits is innocent."""
        self.blamed = True
        self.kill()

    def kill(self) -> None:
        """End the process and all that it started."""
        if not self.alive:
            return
        self.alive = False
        self.pool.processes.remove(self)
        self.pool.notify()
        self.starting.cancel()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(REAP_SECONDS)
        if self.writer is not None:
            self.writer.close()


class Pool:
    """Up to `workers` processes that score completions. Lives in one event loop, in whose thread all of it runs."""

    def __init__(self, sources: Sequence[Source], *, workers: int, memory: int | None, seed: int, log: Log) -> None:
        self.start = Start(tuple(sources), seed=seed, memory=memory)
        self.workers = workers
        self.log = log
        self.processes: list[_Process] = []
        self.awaited: set[int] = set()
        """Sources that are known to be `async def`."""
        self._ids = itertools.count(LOADING + 1)
        self._waiting: list[asyncio.Future[None]] = []
        self._outputs: list[asyncio.BaseTransport] = []

    async def load(self) -> None:
        """Start a first process and make every reward in it. Raises ConfigError that says what is wrong with which."""
        process = _Process(self)
        self.processes.append(process)
        try:
            loaded = await process.ask(LOADING, frame(Load()), LOAD_SECONDS)
        except CallError as error:
            names = ", ".join(source.name for source in self.start.sources)
            raise ConfigError(f"rewards: {names}: cannot be loaded: {error}; {self.log.path} has what was printed") from error
        said = loaded.faults if isinstance(loaded, Loaded) else ()
        faults = [f"rewards: {source.name}: {fault}" for source, fault in zip(self.start.sources, said, strict=False) if fault]
        if faults:
            raise ConfigError("\n".join(faults))

    async def call(self, source: int, completions: Sequence[Completion], timeout: float) -> Outcome:
        """Return the scores. Raises CallError where there are none, for a fault of these completions or of the reward itself."""
        number = next(self._ids)
        message = frame(Call(number, source, timeout, tuple(completions)))
        for alone in (False, True):
            process = await self._process(source, alone)
            try:
                done = await process.ask(number, message, timeout, source=source, alone=alone)
            except _BystanderError:
                continue
            finally:
                self.notify()
            if not _is_outcome(done, len(completions)):
                process.blame()
                raise CallError("its process sent what are no scores, and was killed", retry=False)
            return Outcome(done.scores, done.faults)
        raise AssertionError("a process that has one call has no bystander")

    async def _process(self, source: int, alone: bool) -> _Process:
        while True:
            for process in self.processes:
                if process.takes(source, alone=alone):
                    return process
            if len(self.processes) < self.workers:
                self.processes.append(_Process(self))
                return self.processes[-1]
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]

    def notify(self) -> None:
        """Let those who wait for a process look again."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def drain(self, process: subprocess.Popen[bytes]) -> None:
        """Read what a process prints, for as long as it or what it started lives: a full pipe would stop it."""
        output, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self.log, process.stdout)
        self._outputs.append(output)

    def close(self) -> None:
        """End all processes."""
        for process in tuple(self.processes):
            process.kill()
        for output in self._outputs:
            output.close()


def _how(code: int | None) -> str:
    """Return how a process ended, by its return code."""
    if code is None or code >= 0:
        return f"ended itself with exit code {code}"
    return f"died of {signal.Signals(-code).name if -code in [*signal.Signals] else f'signal {-code}'}"


def _is_outcome(done: Loaded | Done, count: int) -> TypeGuard[Done]:
    """Return whether an answer is what a worker may say of so many completions: its process has a user's code in it."""
    if not isinstance(done, Done) or len(done.scores) != count or any(index not in range(count) for index in done.faults):
        return False
    return all(score is None or abs(score) <= LARGEST_SCORE for score in done.scores)  # NaN compares as False
