"""Rewards that are called in the run's own process: what was handed over as an object, and opened ones such as models.

A call that does not end cannot be killed here. It is left behind in its thread when its deadline passes, and costs its samples. One
that holds the interpreter's lock meanwhile, as a hopeless regular expression does, holds up the run.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any

import attrs

from truing.errors import PluginError
from truing.rewards.pool import CallError
from truing.rewards.scoring import Outcome, describe_fault, read_outcome
from truing.rollout.completion import Completion

ANSWER_SECONDS = 1.0
"""How long an event loop may take to answer before it counts as blocked."""


class _LeftError(Exception):
    """A reward raised what would end an event loop or a thread: SystemExit, say."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


class _Thread:
    """A daemon thread that does one thing after the other; Python's executors would wait for a hung one at exit."""

    def __init__(self, name: str) -> None:
        self.jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
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
            except BaseException as error:  # sys.exit, too, is the reward's failure and not the run's end
                _settle(job[1], error=error)
            else:
                _settle(job[1], result)


def _settle(done: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if not done.set_running_or_notify_cancel():  # the deadline passed
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error if isinstance(error, Exception) else _LeftError(error))


class _Loop:
    """An event loop in a daemon thread, for what one reward awaits; replaced when something blocks it."""

    def __init__(self) -> None:
        self.loop = self._started()

    def _started(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="truing-awaited-rewards", daemon=True).start()
        return loop

    async def wait(self, awaitable: Awaitable[Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_coroutine(awaitable), self.loop))

    async def require_answer(self) -> None:
        loop = self.loop
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop))
        except TimeoutError:
            if self.loop is loop:
                self.loop = self._started()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end the loop with it
        raise _LeftError(error) from error


@attrs.define(eq=False)
class LocalReward:
    """A reward that is called here: its calls one after the other, in a thread, but for what is awaited."""

    name: str
    reward: Callable[[Sequence[Completion]], Any]
    compares: bool = False
    """Whether a score depends on the other completions of the call."""
    _thread: _Thread = attrs.field(init=False, default=attrs.Factory(lambda self: _Thread(self.name), takes_self=True))
    _loop: _Loop | None = attrs.field(init=False, default=None)
    _one_at_a_time: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)

    async def call(self, completions: Sequence[Completion], timeout: float) -> Outcome:
        """Return the scores. Raises CallError where there are none."""
        try:
            result = await self._begin(completions, timeout)
            if inspect.isawaitable(result):
                result = await self._wait(result, timeout)
            return read_outcome(self.name, result, len(completions))
        except CallError:
            raise
        except PluginError as error:
            raise CallError(str(error), retry=False) from error
        except Exception as error:
            cause = error.cause if isinstance(error, _LeftError) else error
            raise CallError(describe_fault(cause), retry=not self.compares) from error

    async def _begin(self, completions: Sequence[Completion], timeout: float) -> Any:
        given = [attrs.evolve(one, prompt=copy.deepcopy(one.prompt), columns=copy.deepcopy(one.columns)) for one in completions]
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(timeout) as deadline:
                    return await asyncio.wrap_future(self._thread.submit(lambda: self.reward(given)))
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                self._thread.close()
                self._thread = _Thread(self.name)
                raise self._late(timeout) from error

    async def _wait(self, awaitable: Awaitable[Any], timeout: float) -> Any:
        self._loop = self._loop or _Loop()
        try:
            async with asyncio.timeout(timeout) as deadline:
                return await self._loop.wait(awaitable)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            await self._loop.require_answer()
            raise self._late(timeout) from error

    def _late(self, timeout: float) -> CallError:
        return CallError(f"not answered within {timeout:g} s", retry=not self.compares)

    def close(self) -> None:
        """End the threads, unless a call that does not end holds them."""
        self._thread.close()
        if self._loop is not None:
            self._loop.close()
