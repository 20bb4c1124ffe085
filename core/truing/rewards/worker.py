"""A process that scores completions, started by truing.rewards.pool: what it runs is COMMAND.

The main thread calls rewards, one at a time; those that are `async def` are awaited together, in an event loop of their own. The
process ends when its run does, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import os
import queue
import random
import resource
import signal
import socket
import sys
import threading
import traceback
import zlib
from collections.abc import Awaitable, Sequence
from typing import Any

from truing.errors import PluginError
from truing.rewards.contract import Reward
from truing.rewards.scoring import describe_fault, read_outcome
from truing.rewards.sources import Source
from truing.rewards.wire import (
    LENGTH_BYTES,
    Answer,
    Awaiting,
    Begun,
    Call,
    Done,
    Failed,
    Load,
    Loaded,
    Question,
    Start,
    frame,
    read_question,
)

COMMAND = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from truing.rewards.worker import main; main()"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    """Serve until the run closes the connection; the program's arguments are its descriptor, and the run's process id."""
    descriptor, parent = map(int, sys.argv[1:3])
    _die_with(parent)
    faulthandler.enable()
    os.set_inheritable(descriptor, False)
    connection = socket.socket(fileno=descriptor)
    questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, questions), daemon=True).start()
    start = questions.get()
    assert isinstance(start, Start)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if start.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (start.memory, start.memory))
    worker = _Worker(connection, start)
    while True:
        worker.serve(questions.get())


def _die_with(parent: int) -> None:
    """End when the parent does, even within a call that never comes back; elsewhere than on Linux the connection's end must do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _read(connection: socket.socket, questions: queue.SimpleQueue[Question]) -> None:
    """Pass messages on; the end of the connection is the end of the run, whatever the main thread is doing."""
    with contextlib.suppress(OSError), connection.makefile("rb") as stream:
        while len(head := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
            data = stream.read(int.from_bytes(head, "big"))
            try:
                questions.put(read_question(data))
            except Exception:
                traceback.print_exc()
                break
    os._exit(0)


class _Worker:
    def __init__(self, connection: socket.socket, start: Start) -> None:
        self.connection = connection
        self.sources: Sequence[Source] = start.sources
        self.seed = start.seed
        self.rewards: dict[int, Reward] = {}
        self.sending = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None

    def serve(self, question: Question) -> None:
        if isinstance(question, Load):
            self.send(Loaded(tuple(map(self.fault_of, range(len(self.sources))))))
        elif isinstance(question, Call):
            try:
                self.call(question)
            except BaseException as error:
                self.fail(question, error)
            finally:
                faulthandler.cancel_dump_traceback_later()

    def reward(self, index: int) -> Reward:
        if index not in self.rewards:
            self.rewards[index] = self.sources[index].load()
        return self.rewards[index]

    def fault_of(self, index: int) -> str:
        try:
            self.reward(index)
        except BaseException as error:
            traceback.print_exc()
            return describe_fault(error)
        return ""

    def call(self, call: Call) -> None:
        reward = self.reward(call.source)
        # what a reward draws at random must not depend on which process it is drawn in, or how often that one was asked before
        _seed(zlib.crc32(repr([(one.request_id, one.index, one.token_ids) for one in call.completions]).encode(), self.seed))
        self.send(Begun(call.id, bool(getattr(reward, "compares", False))))
        faulthandler.dump_traceback_later(call.timeout)  # into the log, before the run kills this process
        result: Any = reward(call.completions)
        if inspect.isawaitable(result):
            asyncio.run_coroutine_threadsafe(self.wait(call, reward, result), self.running_loop())
            self.send(Awaiting(call.id))
        else:
            self.finish(call, reward, result)

    def running_loop(self) -> asyncio.AbstractEventLoop:
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return self.loop

    async def wait(self, call: Call, reward: Reward, awaitable: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(call.timeout) as deadline:
                result = await awaitable
            self.finish(call, reward, result)
        except BaseException as error:
            late = TimeoutError(f"no answer within {call.timeout:g} s")
            self.fail(call, late if isinstance(error, TimeoutError) and deadline.expired() else error)

    def finish(self, call: Call, reward: Reward, result: Any) -> None:
        outcome = read_outcome(self.sources[call.source].name, result, len(call.completions))
        self.send(Done(call.id, outcome.scores, dict(outcome.faults)))

    def fail(self, call: Call, error: BaseException) -> None:
        traceback.print_exception(error)
        comparing = bool(getattr(self.rewards.get(call.source), "compares", False))
        retry = not comparing and not isinstance(error, PluginError)
        self.send(Failed(call.id, describe_fault(error), retry, isinstance(error, MemoryError)))

    def send(self, answer: Answer) -> None:
        with self.sending:
            self.connection.sendall(frame(answer))


def _seed(seed: int) -> None:
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
