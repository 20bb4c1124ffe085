"""The live backend: requests in from any thread, completions out, with an event loop of its own in between."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from truing import Completion, OpenContext, RolloutRequest, WeightSource
from truing.model.spread import is_spread
from truing.rollout.completion import generate_by_submitting
from truing.threads import CLOSE_SECONDS, end_tasks
from truing.train.ranks import together
from truing_vllm.address import Address
from truing_vllm.backend import VllmRollout
from truing_vllm.connection import Connection
from truing_vllm.fleet import Fleet
from truing_vllm.server import Server
from truing_vllm.trainer import WeightFiles, make_probe, run_label, weights_folder
from truing_vllm.updates import AdapterWeights, Update, WholeWeights

T = TypeVar("T")


class LiveVllm:
    """Samples with the servers at these addresses; the first of the run's processes gives them weights."""

    def __init__(
        self,
        settings: VllmRollout,
        context: OpenContext,
        addresses: Sequence[Address],
        *,
        loop: asyncio.AbstractEventLoop,
        adapter_alone: bool,
        about: str,
    ) -> None:
        self.settings, self.context, self.about = settings, context, about
        self.adapter_alone = adapter_alone
        self.run = f"{run_label(context.run_dir)}-{secrets.token_hex(4)}"
        """What names begin with that servers learn: of another start another, which may have other weights of the same version."""
        self.version: int | None = None
        """Of the weights that the servers have; None before the first."""
        self.files = WeightFiles(weights_folder(settings, context.run_dir), run_label(context.run_dir))
        self.held = ExitStack()
        """What is closed at the end."""
        self._adapters: list[str] = []
        self._loop = loop
        self._fleet = self._run(self._connect(addresses))

    async def _connect(self, addresses: Sequence[Address]) -> Fleet:
        return Fleet(
            servers=[Server(Connection(address)) for address in addresses],
            timeout=self.settings.timeout,
            ends=sorted(self.context.end_tokens),
            pushes=self.context.rank == 0,
            slots=asyncio.Semaphore(self.settings.max_concurrency),
        )

    def _run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Return what a coroutine returns in the client's thread; without `seconds`, it has a deadline of its own."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def wait_until_there(self) -> None:
        """Return when a server is healthy. Raises RolloutError where none is within the timeout."""
        self._run(self._fleet.greet())

    def end_when(self, gone: Callable[[], str | None]) -> None:
        """Raise RolloutError, of all that goes on and of all that is asked, as soon as `gone` says why."""
        self._run(self._fleet.end_when(gone))

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        """Begin to complete a request; may be called from any thread, also while weights change."""
        return asyncio.run_coroutine_threadsafe(self._fleet.complete(request), self._loop)

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield the completions of all requests, those of one together as soon as all of them are there."""
        return generate_by_submitting(self, requests)

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Give all servers the policy's weights, and see by a probe that they have them. Raises RolloutError where they do not.

        The first process does so, and tells the others when it is done: until then they expect answers from the weights before.
        """
        if version == self.version:
            return
        spread = is_spread(self.context.models["policy"])
        update = self._adapter(version, source) if self.adapter_alone else self._whole(version, source, spread)
        given, *_ = together(lambda: self._given(update, source, spread), "giving the servers weights")
        self._run(self._fleet.follow(given))
        self.version = version

    def _given(self, update: Update, source: WeightSource, spread: bool) -> Update:
        """Return the update when the servers have it, of which the first process sees to it."""
        first = self.context.rank == 0
        if first or spread:
            probe = make_probe(self.context, source, self.settings.serve, self.settings.probe_tolerance)
        if first:
            self._run(self._fleet.push(update, probe))
        return update

    def _whole(self, version: int, source: WeightSource, spread: bool) -> Update:
        name = f"{self.run}-{version}"
        files, *_ = together(lambda: self._written(name, source, spread), "writing weights for the servers")
        return WholeWeights(run=self.run, version=version, files=files)

    def _written(self, name: str, source: WeightSource, spread: bool) -> tuple[str, ...]:
        weights = source.parameters()
        try:
            return self.files.write(name, weights) if self.context.rank == 0 else ()
        finally:
            if spread:  # every process takes part in gathering every weight, whatever fails in one
                for _ in weights:
                    pass

    def _adapter(self, version: int, source: WeightSource) -> Update:
        saved = source.adapter()
        assert saved is not None
        folder, name = saved, f"{self.run}-v{version}"
        if self.settings.weights_dir is not None:
            folder, *_ = together(lambda: self._copied(name, saved), "copying the adapter for the servers")
        self._adapters = [*(known for known in self._adapters if known != name), name][-self.settings.serve.max_loras :]
        return AdapterWeights(run=self.run, version=version, model=name, folder=folder.absolute(), kept=self._adapters[:-1])

    def _copied(self, name: str, folder: Path) -> Path:
        return self.files.copy(name, folder) if self.context.rank == 0 else folder

    def close(self) -> None:
        """Hang up, stop a server that the run started, and remove what went through the folder for weights."""
        try:
            self.held.close()
        finally:
            if self.context.rank == 0:
                self.files.remove()

    def hang_up(self) -> None:
        """Give up what is in flight, and close all connections."""
        self._run(self._hang_up(), 3 * CLOSE_SECONDS)

    async def _hang_up(self) -> None:
        await end_tasks()
        await self._fleet.close()
