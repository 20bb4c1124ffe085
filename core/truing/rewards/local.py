"""Rewards that are called in the run's own process: what was handed over as an object, and opened ones such as models.

A call that does not end cannot be killed here. It is left behind in its thread when its deadline passes, and costs its samples. One
that holds the interpreter's lock meanwhile, as a hopeless regular expression does, holds up the run.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from truing.errors import PluginError
from truing.rewards.pool import CallError
from truing.rewards.scoring import Outcome, describe_fault, read_outcome
from truing.rollout.completion import Completion
from truing.threads import Beside, DeadlineError, LeftError, LoopThread


@attrs.define(eq=False)
class LocalReward:
    """A reward that is called here: its calls one after the other, in a thread, but for what is awaited."""

    name: str
    reward: Callable[[Sequence[Completion]], Any]
    compares: bool = False
    """Whether a score depends on the other completions of the call."""
    _beside: Beside = attrs.field(init=False, default=attrs.Factory(lambda self: Beside(self.name, LoopThread()), takes_self=True))
    _one_at_a_time: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)

    async def call(self, completions: Sequence[Completion], timeout: float) -> Outcome:
        """Return the scores. Raises CallError where there are none."""
        try:
            return read_outcome(self.name, await self._result(completions, timeout), len(completions))
        except DeadlineError as error:
            raise CallError(f"not answered within {timeout:g} s", retry=not self.compares) from error
        except PluginError as error:
            raise CallError(str(error), retry=False) from error
        except Exception as error:
            cause = error.cause if isinstance(error, LeftError) else error
            raise CallError(describe_fault(cause), retry=not self.compares) from error

    async def _result(self, completions: Sequence[Completion], timeout: float) -> Any:
        given = [attrs.evolve(one, prompt=copy.deepcopy(one.prompt), columns=copy.deepcopy(one.columns)) for one in completions]
        async with self._one_at_a_time, self._beside.deadline(timeout):
            result = await self._beside.begin(lambda: self.reward(given))
        if not inspect.isawaitable(result):
            return result
        async with self._beside.deadline(timeout):
            return await self._beside.awaiting.wait(result)

    def close(self) -> None:
        """End the threads, unless a call that does not end holds them."""
        self._beside.close()
        self._beside.awaiting.close()
