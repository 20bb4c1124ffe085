"""Rewards that are called in the run's own process: what was handed over as an object, and opened ones such as models.

A call that does not end cannot be killed here. It is left behind in its thread when its deadline passes, and costs its samples. One
that holds the interpreter's lock meanwhile, as a hopeless regular expression does, holds up the run.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from truing.errors import PluginError
from truing.rewards.pool import CallError
from truing.rewards.scoring import Outcome, describe_fault, read_outcome
from truing.rollout.completion import Completion
from truing.threads import DaemonThread, LeftError, LoopThread


@attrs.define(eq=False)
class LocalReward:
    """A reward that is called here: its calls one after the other, in a thread, but for what is awaited."""

    name: str
    reward: Callable[[Sequence[Completion]], Any]
    compares: bool = False
    """Whether a score depends on the other completions of the call."""
    _thread: DaemonThread = attrs.field(init=False, default=attrs.Factory(lambda self: DaemonThread(self.name), takes_self=True))
    _loop: LoopThread | None = attrs.field(init=False, default=None)
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
            cause = error.cause if isinstance(error, LeftError) else error
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
                self._thread = DaemonThread(self.name)
                raise self._late(timeout) from error

    async def _wait(self, awaitable: Awaitable[Any], timeout: float) -> Any:
        self._loop = self._loop or LoopThread()
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
