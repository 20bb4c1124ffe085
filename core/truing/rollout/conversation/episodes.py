"""The driver: any backend as the engine of episodes with several turns."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

import attrs

from truing.errors import PluginError, RolloutError
from truing.rewards.pool import Log
from truing.rollout.completion import (
    Completion,
    ConcurrentRollout,
    LiveRollout,
    RolloutRequest,
    WeightSource,
    generate_by_submitting,
)
from truing.rollout.conversation.episode import GRACE_SECONDS, Episode, Sample, Stage
from truing.rollout.conversation.rendering import Renderer
from truing.threads import CLOSE_SECONDS

WAITS = 4
"""Deadlines of its environment that an episode may use up between two turns: close, begin, a tool, a step."""


@attrs.frozen
class Waiting:
    """An episode that waits for the policy."""

    place: int
    """Which of the episodes it is."""
    request: RolloutRequest
    turn: asyncio.Future[Completion]


Batch = Sequence[Waiting]


class Lockstep:
    """Counts the episodes that are at work, and hands over all that wait for the policy when none is."""

    def __init__(self, workers: int, hand_over: Callable[[Batch], None]) -> None:
        self.busy = workers
        self.hand_over = hand_over
        self.waiting: list[Waiting] = []

    async def sample(self, place: int, request: RolloutRequest) -> Completion:
        """Return the turn, once all others wait too."""
        turn: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(place, request, turn))
        self.rest()
        return await turn

    def rest(self) -> None:
        """Note that one less is at work."""
        self.busy -= 1
        if self.busy == 0 and self.waiting:
            # in one order, so that what is computed together, and how it is rounded, does not depend on who was first
            batch = sorted(self.waiting, key=lambda one: one.place)
            self.waiting, self.busy = [], len(batch)
            self.hand_over(batch)


@attrs.define(eq=False, kw_only=True)
class LiveConversations:
    """A live backend whose samples are episodes; the turns of all open ones are sampled together, by one call of the engine.

    That call is made in the thread that asked. Everything else is done in an event loop of its own, which goes on meanwhile.
    """

    extends_prompts: ClassVar[bool] = True

    engine: LiveRollout
    stage: Stage
    renderer_of: Callable[[RolloutRequest], Renderer]
    about: str
    log: Log
    loop: asyncio.AbstractEventLoop
    held: ExitStack = attrs.field(factory=ExitStack)
    """What is closed at the end."""

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield the completions of all requests as their episodes end.

        Raises what the engine raises, PluginError where it does not answer as it is asked, RolloutError where environments do not.
        """
        inbox: queue.SimpleQueue[Completion | Batch | None] = queue.SimpleQueue()
        ended = threading.Event()
        running = asyncio.run_coroutine_threadsafe(self._play_all(requests, inbox.put, ended), self.loop)
        running.add_done_callback(lambda _: inbox.put(None))
        try:
            while (found := self._next(inbox)) is not None:
                if isinstance(found, Completion):
                    yield found
                else:
                    self._sample(found)
            running.result()
        finally:
            running.cancel()
            ended.wait(CLOSE_SECONDS)

    def _next(self, inbox: queue.SimpleQueue[Completion | Batch | None]) -> Completion | Batch | None:
        seconds = WAITS * (self.stage.timeout + GRACE_SECONDS) + CLOSE_SECONDS
        try:
            return inbox.get(timeout=seconds)
        except queue.Empty as error:
            raise RolloutError(f"no episode has come to its next turn, or its end, within {seconds:g} s") from error

    async def _play_all(
        self, requests: Sequence[RolloutRequest], put: Callable[[Completion | Batch], None], ended: threading.Event
    ) -> None:
        """Play every sample of every request, as many at once as the environments allow."""
        left = deque(enumerate((request, index) for request in requests for index in range(request.n)))
        capacity = self._capacity or len(left)
        steps = Lockstep(min(capacity, len(left)), put)

        async def work() -> None:
            while left:
                place, (request, index) = left.popleft()
                put(await self._play(request, index, partial(steps.sample, place)))
            steps.rest()

        try:
            await all_or_none([work() for _ in range(steps.busy)])
        finally:
            ended.set()

    @property
    def _capacity(self) -> int | None:
        environments = self.stage.environments
        return None if environments is None else environments.capacity

    async def _play(self, request: RolloutRequest, index: int, sample: Sample) -> Completion:
        renderer = self.renderer_of(request)
        completion = await Episode(stage=self.stage, request=request, index=index, renderer=renderer, sample=sample).play()
        for key in ("error", "close_error"):
            if problem := completion.extra.get(key):
                self.log.note(f"{request.id}[{index}]: {key}: {problem}")
        return completion

    def _sample(self, batch: Batch) -> None:
        """Complete the turns of a batch, those that begin alike as samples of one request."""
        alike: dict[Any, list[Waiting]] = {}
        for waiting in batch:
            alike.setdefault((waiting.request.prompt_ids, waiting.request.sampling), []).append(waiting)
        groups = {group[0].request.id: group for group in alike.values()}
        asked = [attrs.evolve(group[0].request, seeds=tuple(one.request.seeds[0] for one in group)) for group in groups.values()]
        left = {(id_, index): waiting for id_, group in groups.items() for index, waiting in enumerate(group)}
        for turn in self.engine.generate(asked):
            key = turn.request_id, turn.index
            if key not in left:
                raise PluginError(f"rollout {self.stage.engine!r} answers {turn.request_id!r}[{turn.index}], which was not asked")
            self.loop.call_soon_threadsafe(_settle, left.pop(key).turn, turn)
        if left:
            raise PluginError(f"rollout {self.stage.engine!r} gave no completion for {len(left)} of {len(batch)} turns")

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Hand new weights on to the engine."""
        self.engine.update_weights(version, source)

    def close(self) -> None:
        """Close the engine and the environments."""
        self.held.close()


@attrs.define(eq=False, kw_only=True)
class ConcurrentConversations(LiveConversations):
    """The same over an engine that takes requests while it works on others: every episode goes on by itself."""

    engine: ConcurrentRollout
    _admission: AbstractAsyncContextManager[Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._admission = nullcontext() if self._capacity is None else asyncio.Semaphore(self._capacity)

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        """Begin the episodes of a request; as many are open at once, of all requests, as the environments allow."""
        return asyncio.run_coroutine_threadsafe(self._group(request), self.loop)

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield the completions of each request when its episodes have ended. Raises what `submit` does."""
        return generate_by_submitting(self, requests)

    async def _group(self, request: RolloutRequest) -> tuple[Completion, ...]:
        return tuple(await all_or_none([self._admitted(request, index) for index in range(request.n)]))

    async def _admitted(self, request: RolloutRequest, index: int) -> Completion:
        async with self._admission:
            return await self._play(request, index, self._turn)

    async def _turn(self, asked: RolloutRequest) -> Completion:
        answers = await asyncio.wrap_future(self.engine.submit(asked))
        if len(answers) != 1:
            raise PluginError(f"rollout {self.stage.engine!r} gave {len(answers)} completions for a turn, and it must give 1")
        return answers[0]


def _settle(turn: asyncio.Future[Completion], sampled: Completion) -> None:
    if not turn.done():  # cancelled
        turn.set_result(sampled)


T = TypeVar("T")


async def all_or_none(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all give. When one fails the others are cancelled, and waited for until they have cleaned up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = next((task for task in tasks if task.done() and task.exception() is not None), None)
        return [task.result() for task in ([failed] if failed is not None else tasks)]
    finally:
        for task in tasks:
            task.cancel()  # once, for a second time would end what cleans up
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # looked at, or asyncio would print it
