"""Threads in which a user's code runs beside the run: they are left behind, not waited for, when that code does not end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import attrs

ANSWER_SECONDS = 1.0
"""How long an event loop may take to answer before it counts as blocked."""
CLOSE_SECONDS = 10.0
"""How long what ends may take to end."""


class LeftError(Exception):
    """A user's code raised what would end an event loop or a thread: SystemExit, say."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class DeadlineError(Exception):
    """A user's code did not end in time, and was left behind."""


class DaemonThread:
    """A daemon thread that does one thing after the other; Python's executors would wait for a hung one at exit."""

    def __init__(self, name: str) -> None:
        self.jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Begin to call `job`, after those before it."""
        done: Future[Any] = Future()
        self.jobs.put((job, done))
        return done

    def close(self) -> None:
        """End after what is being done."""
        self.jobs.put(None)

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                result = job[0]()
            except BaseException as error:  # sys.exit, too, is the failure of what was called and not the run's end
                _settle(job[1], error=error)
            else:
                _settle(job[1], result)


def _settle(done: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if not done.set_running_or_notify_cancel():  # the deadline passed
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error if isinstance(error, Exception) else LeftError(error))


class LoopThread:
    """An event loop in a daemon thread, for what a user's code awaits; replaced when something blocks it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """There is one as soon as something is awaited."""

    def _started(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="truing-awaited", daemon=True).start()
        return loop

    async def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Return what is awaited there."""
        self.loop = self.loop or self._started()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_coroutine(awaitable), self.loop))

    async def require_answer(self) -> None:
        """Replace the loop if it is blocked."""
        loop = self.loop
        if loop is None:
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop))
        except TimeoutError:
            if self.loop is loop:
                self.loop = self._started()

    def close(self) -> None:
        """End the loop, unless something blocks it."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end the loop with it
        raise LeftError(error) from error


async def end_tasks(meanwhile: Callable[[], None] = lambda: None) -> None:
    """Cancel all that goes on in this event loop, call `meanwhile`, and wait a while for the ends."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    meanwhile()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_SECONDS)


@attrs.define(eq=False)
class Beside:
    """Calls a user's functions beside an event loop, one after the other: plain ones in a thread of their own, others awaited."""

    name: str
    awaiting: LoopThread
    """Where what is to be awaited is, which several of these may share."""
    _thread: DaemonThread | None = attrs.field(init=False, default=None)

    async def call(self, job: Callable[[], Any], seconds: float) -> Any:
        """Return what `job()` gives, or what awaiting that gives. Raises what it raises, LeftError, and DeadlineError when late."""
        async with self.deadline(seconds):
            result = await self.begin(job)
            return await self.awaiting.wait(result) if inspect.isawaitable(result) else result

    async def begin(self, job: Callable[[], Any]) -> Any:
        """Return what `job()` gives in the thread, and do not await that."""
        self._thread = self._thread or DaemonThread(self.name)
        return await asyncio.wrap_future(self._thread.submit(job))

    @contextlib.asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[None]:
        """Raise DeadlineError where what is done within takes longer; the thread is left behind, and the loop if it is blocked."""
        try:
            async with asyncio.timeout(seconds) as deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self.close()
            await self.awaiting.require_answer()
            raise DeadlineError(f"no answer within {seconds:g} s") from error

    def close(self) -> None:
        """End the thread, unless a call that does not end holds it."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None


@contextlib.contextmanager
def running_loop(name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """Yield an event loop that runs in a daemon thread of its own; what is going on in it at the end is cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        with contextlib.suppress(TimeoutError):  # something blocks the loop
            asyncio.run_coroutine_threadsafe(end_tasks(), loop).result(CLOSE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_SECONDS)
        if not thread.is_alive():
            loop.close()
