"""All servers of a run: who is asked, what is asked again, and how servers that come back get their weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import attrs

from truing import Completion, RolloutError, RolloutRequest, VersionSpan
from truing_vllm.course import TRIES, Course, pause_before
from truing_vllm.faults import BusyError, LateError, RefusedError, ServerFault, StaleError, UnreachableError, remedy
from truing_vllm.labels import Label
from truing_vllm.probe import Probe
from truing_vllm.server import Server
from truing_vllm.updates import Update, WholeWeights
from truing_vllm.versions import label_of, versions_of
from truing_vllm.wire import Sample, sampling_params

HEALTH_SECONDS = 10.0
LOOK_SECONDS = 0.5
"""Between looks whether a server of the run's own is gone."""
WATCH_SECONDS = 3.0
"""Between looks at servers that seem to be well."""
GREETING_SECONDS = 5.0
"""How long servers that are not there yet are waited for where one is."""


class PushError(Exception):
    """A server is there and does not have the weights that it was given."""


@attrs.define(eq=False, kw_only=True)
class Fleet:
    """Samples from servers that have the policy's weights. To be used within one event loop."""

    servers: Sequence[Server]
    timeout: float
    """Seconds for one completion or push, and for a server that is gone to come back."""
    ends: Sequence[int]
    """Tokens that end a completion."""
    pushes: bool
    """Whether it is this process that gives the servers weights."""
    slots: asyncio.Semaphore
    update: Update | None = None
    probe: Probe | None = None
    fatal: RolloutError | None = None
    """Why nothing goes on."""
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    """Set whenever a server came back, or nothing goes on."""
    _asking: set[asyncio.Task[Completion]] = attrs.field(factory=set, init=False)
    _beside: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    """What looks after servers while completions are asked for."""
    _watched: bool = attrs.field(default=False, init=False)

    async def complete(self, request: RolloutRequest) -> tuple[Completion, ...]:
        """Return the completions of a request in the order of its seeds. Raises RolloutError where no server can be used."""
        home = self._least_busy(self.servers)
        home.in_flight += request.n
        tasks = [asyncio.ensure_future(self._sample(request, index, home)) for index in range(request.n)]
        self._asking.update(tasks)
        try:
            return tuple(await asyncio.gather(*tasks))
        except asyncio.CancelledError:
            if self.fatal is not None:
                raise self.fatal from None
            raise
        finally:
            home.in_flight -= request.n
            for task in tasks:
                task.cancel()
            self._asking.difference_update(tasks)

    def _least_busy(self, servers: Sequence[Server]) -> Server:
        """Return the server with the least to do of those that are there: all completions of a prompt share its keys and values."""
        return min(servers, key=lambda server: (not server.up, server.in_flight))

    async def _sample(self, request: RolloutRequest, index: int, home: Server) -> Completion:
        async with self.slots:
            return await self._tried(request, index, home)

    async def _tried(self, request: RolloutRequest, index: int, server: Server) -> Completion:
        """Ask until there is an answer, or none is to be had: of this server, and of others where it is gone."""
        course = Course(self.timeout)
        while True:
            if self.fatal is not None:
                raise self.fatal
            server = await self._available(server, course)
            course.asked = self._now()
            try:
                return await self._attempt(server, request, index)
            except ServerFault as fault:
                given_up = course.gives_up(fault, server, self._now())
                # one that is late is asked again once it answers the probe; if it never does, that is an error of the run
                if isinstance(fault, UnreachableError | StaleError) or (isinstance(fault, LateError) and not given_up):
                    self._lost(server)
                if given_up:
                    return _failed(request, index, course.problem)
            await asyncio.sleep(pause_before(max(1, course.failures)))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _attempt(self, server: Server, request: RolloutRequest, index: int) -> Completion:
        update = server.installed if self.pushes else self.update
        params = sampling_params(request, request.seeds[index], self.ends)
        model = None if update is None else update.model
        before = None
        if isinstance(update, WholeWeights) and not server.says_versions:
            before = await label_of(server, update.run, seconds=self.timeout)
        try:
            sample = await server.sample(request.prompt_ids, params, model, seconds=self.timeout)
        except RefusedError as fault:
            if model is not None and fault.status == 404:
                raise StaleError(f"{server} does not have the adapter {model} any more") from fault
            raise
        versions = await self._versions(sample, update, before, server)
        server.answered = self._now()
        return _completion(request, index, sample, versions)

    async def _versions(
        self, sample: Sample, update: Update | None, before: Label | None, server: Server
    ) -> tuple[VersionSpan, ...]:
        if not sample.token_ids:
            return ()
        if isinstance(update, WholeWeights):
            return await versions_of(sample, update, before, server, seconds=self.timeout)
        return (VersionSpan(version=0 if update is None else update.version, start=0, end=len(sample.token_ids)),)

    async def _available(self, wanted: Server, course: Course) -> Server:
        """Return a server that is there, the wanted one if it may be, when there is one. Raises RolloutError where none comes."""
        await self.wait_for_any(course.problem)
        there = [server for server in self.servers if server.up]
        answering = [server for server in there if server not in course.hung] or there
        return wanted if wanted in answering else self._least_busy(answering)

    async def wait_for_any(self, problem: str) -> None:
        """Wait until a server can be used. Raises RolloutError where none can be within the timeout, or ever."""
        try:
            async with asyncio.timeout(self.timeout):
                while self.fatal is None and not any(server.up for server in self.servers):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            names = ", ".join(map(str, self.servers))
            raise RolloutError(f"no vLLM server came back within {self.timeout:.0f} s, of {names}; the last: {problem}") from None
        if self.fatal is not None:
            raise self.fatal

    def _lost(self, server: Server) -> None:
        """Ask a server nothing until it was seen to be there with the right weights."""
        if server.up:
            server.up = False
            self._start(self._revive(server))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start what looks after servers; where it fails by a fault of ours, nothing goes on, rather than unwatched."""
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._end(RolloutError(f"what looks after the vLLM servers failed: {error!r}; a fault of Truing's, please report it"))

    async def _revive(self, server: Server) -> None:
        attempt = 0
        while not server.up:
            try:
                await self._look_at(server)
                server.up = server.installed is self.update or not self.pushes
            except ServerFault as fault:
                if (advice := remedy(fault)) is not None:
                    self._end(PushError(f"{fault}; {advice}"))
                    return
                if isinstance(fault, StaleError):
                    server.installed = None
                attempt += 1
                await asyncio.sleep(pause_before(attempt))
            except PushError as error:
                self._end(error)
                return
        self._changed.set()

    async def end_when(self, gone: Callable[[], str | None]) -> None:
        """Let nothing go on as soon as `gone` says why: a server that nobody starts again is not waited for."""
        self._start(self._end_when(gone))

    async def _end_when(self, gone: Callable[[], str | None]) -> None:
        while (why := gone()) is None:
            await asyncio.sleep(LOOK_SECONDS)
        self._end(RolloutError(why))

    def _end(self, error: PushError | RolloutError) -> None:
        """Let nothing go on: what is asked of a server that is paused for good would wait out its time."""
        self.fatal = RolloutError(str(error))
        for task in self._asking:
            task.cancel()
        self._changed.set()

    async def _look_at(self, server: Server) -> None:
        """Return when a server is healthy and has the weights, which the first process gives it if it does not have them."""
        await server.connection.get("/health", seconds=HEALTH_SECONDS)
        update = self.update
        if update is None:
            return
        held = await update.is_held(server.connection, seconds=HEALTH_SECONDS)
        if self.pushes and not (held and server.installed is update):
            await self._install(server)
        elif not held:
            raise StaleError(f"{server} does not have version {update.version} of the weights, which the first process gives it")
        elif self.probe is not None:
            await self.probe.check(server, update.model, seconds=min(HEALTH_SECONDS * 3, self.timeout))

    async def greet(self) -> None:
        """Return when a server is healthy. Raises RolloutError where none is within the timeout."""
        for server in self.servers:
            self._lost(server)
        await self.wait_for_any("it did not answer /health")
        with suppress(TimeoutError):  # the work is shared among all that are there, so that the others get a moment
            async with asyncio.timeout(GREETING_SECONDS):
                while not all(server.up for server in self.servers):
                    self._changed.clear()
                    await self._changed.wait()

    async def follow(self, update: Update) -> None:
        """Expect answers from these weights, which the first process has given the servers."""
        if self.pushes:
            return
        self.update = update
        if isinstance(update, WholeWeights):
            labels = (label_of(server, update.run, seconds=HEALTH_SECONDS) for server in self.servers if server.up)
            await asyncio.gather(*labels, return_exceptions=True)  # a server that does not say it is asked again when it answers

    async def push(self, update: Update, probe: Probe) -> None:
        """Give all servers that are there new weights, and see that they have them; the others get them when they are back.

        Raises RolloutError where one that is there does not take them, or none is there.
        """
        self.update, self.probe = update, probe
        if not self._watched:
            self._start(self._keep_watch())
            self._watched = True
        there = [server for server in self.servers if server.up]
        results = await asyncio.gather(*map(self._install, there), return_exceptions=True)
        problem = ""
        for server, result in zip(there, results, strict=True):
            if isinstance(result, ServerFault):
                problem = str(result)
                self._lost(server)
            elif isinstance(result, PushError):
                self._end(result)
            elif isinstance(result, BaseException):
                raise result
        await self.wait_for_any(problem)

    async def _keep_watch(self) -> None:
        """Look after servers that only other processes may be asking: one that was started again gets its weights again."""
        while self.fatal is None:
            await asyncio.sleep(WATCH_SECONDS)
            await asyncio.gather(*(self._look_after(server) for server in self.servers if server.up))

    async def _look_after(self, server: Server) -> None:
        try:
            async with server.lock:
                update = server.installed
                if update is None or await update.is_held(server.connection, seconds=HEALTH_SECONDS):
                    return
        except (LateError, BusyError):  # it has much to do
            return
        except ServerFault:
            pass
        self._lost(server)

    async def _install(self, server: Server) -> None:
        """Give a server the weights of now. Raises PushError where it does not take them, ServerFault where it is gone or busy."""
        async with server.lock:
            given, tries = None, 0
            while True:
                update, probe = self.update, self.probe  # there may be newer ones since the last try, whose files are gone then
                assert update is not None and probe is not None
                given, tries = update, tries + 1 if given is update else 1
                try:
                    return await self._give(server, update, probe)
                except (UnreachableError, LateError, BusyError):
                    raise
                except ServerFault as fault:
                    if (advice := remedy(fault)) is not None:
                        raise PushError(f"{fault}; {advice}") from fault
                    if tries >= TRIES and update is self.update:
                        hint = update.hint if isinstance(fault, StaleError) else ""
                        raise PushError(
                            f"{server} did not take version {update.version} of the weights in {TRIES} tries: {fault}{hint}"
                        ) from fault
                await asyncio.sleep(pause_before(tries))

    async def _give(self, server: Server, update: Update, probe: Probe) -> None:
        """Try once to give a server weights, under a label of its own that it bears as proven when a probe found them right."""
        server.attempts += 1
        label = Label(update.run, server.attempts, update.version)
        name = await update.apply(server.connection, label, seconds=self.timeout)
        await probe.check(server, name, seconds=self.timeout)
        await update.confirm(server.connection, label, seconds=self.timeout)
        server.proven.add(label.attempt)
        server.installed = update

    async def close(self) -> None:
        """Hang up, when all tasks have ended."""
        await asyncio.gather(*(server.connection.close() for server in self.servers))


def _failed(request: RolloutRequest, index: int, problem: str) -> Completion:
    return Completion(
        request_id=request.id,
        index=index,
        prompt_ids=request.prompt_ids,
        token_ids=(),
        token_logps=(),
        finish_reason="error",
        columns=request.columns,
        extra={"error": problem},
    )


def _completion(request: RolloutRequest, index: int, sample: Sample, versions: tuple[VersionSpan, ...]) -> Completion:
    if sample.finish_reason == "error":
        return _failed(request, index, sample.error)
    return Completion(
        request_id=request.id,
        index=index,
        prompt_ids=request.prompt_ids,
        token_ids=sample.token_ids,
        token_logps=sample.token_logps,
        finish_reason=sample.finish_reason,
        versions=versions,
        columns=request.columns,
    )
