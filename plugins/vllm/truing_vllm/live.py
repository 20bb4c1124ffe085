"""The live backend: requests in from any thread, completions out, with an event loop of its own in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from truing import Completion, OpenContext, RolloutRequest, WeightSource
from truing.rollout.completion import generate_by_submitting
from truing_vllm.address import Address
from truing_vllm.backend import VllmRollout
from truing_vllm.connection import Connection
from truing_vllm.fleet import Fleet
from truing_vllm.server import Server
from truing_vllm.trainer import WeightFiles, end_tokens, is_sharded, make_probe
from truing_vllm.updates import AdapterWeights, Update, WholeWeights

CLOSE_SECONDS = 10.0
T = TypeVar("T")


class LiveVllm:
    """Samples with the servers at these addresses; the first of the run's processes gives them weights."""

    def __init__(
        self,
        settings: VllmRollout,
        context: OpenContext,
        addresses: Sequence[Address],
        *,
        run: str,
        weights_dir: Path,
        adapter_alone: bool,
        about: str,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.context, self.about = settings, context, about
        self.run, self.adapter_alone = run, adapter_alone
        self.version: int | None = None
        """Of the weights that the servers have; None before the first."""
        self.files = WeightFiles(weights_dir, run)
        self._adapters: list[str] = []
        self._stop = stop
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm client", daemon=True)
        self._thread.start()
        self._fleet = self._run(self._connect(addresses))

    async def _connect(self, addresses: Sequence[Address]) -> Fleet:
        return Fleet(
            servers=[Server(Connection(address)) for address in addresses],
            timeout=self.settings.timeout,
            run=self.run,
            ends=end_tokens(self.context),
            pushes=self.context.rank == 0,
            slots=asyncio.Semaphore(self.settings.max_concurrency),
        )

    def _run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Return what a coroutine returns in the client's thread; without `seconds`, it has a deadline of its own."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def wait_until_there(self) -> None:
        """Return when a server is healthy. Raises RolloutError where none is within the timeout."""
        self._run(self._fleet.greet())

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        """Begin to complete a request; may be called from any thread, also while weights change."""
        return asyncio.run_coroutine_threadsafe(self._fleet.complete(request), self._loop)

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield the completions of all requests, those of one together as soon as all of them are there."""
        return generate_by_submitting(self, requests)

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Give all servers the policy's weights, and see by a probe that they have them. Raises RolloutError where they do not.

        Where weights are spread over processes, all of these take part; else the first does it alone.
        """
        if version == self.version:
            return
        writes = self.context.rank == 0
        update = self._adapter(version, source) if self.adapter_alone else self._whole(version, source, writes=writes)
        if writes or is_sharded(self.context):
            probe = make_probe(self.context, self.settings.serve, self.settings.probe_tolerance)
        if writes:
            self._run(self._fleet.push(update, probe))
        else:
            self._run(self._fleet.follow(update))
        self.version = version

    def _whole(self, version: int, source: WeightSource, *, writes: bool) -> Update:
        label = f"{self.run}-{version}"
        if writes:
            return WholeWeights(version=version, label=label, files=self.files.write(label, source))
        if is_sharded(self.context):
            for _ in source.parameters():
                pass
        return WholeWeights(version=version, label=label, files=())

    def _adapter(self, version: int, source: WeightSource) -> Update:
        folder = source.adapter()
        assert folder is not None
        name = f"{self.run}-v{version}"
        self._adapters = [*(known for known in self._adapters if known != name), name]
        older, self._adapters = self._adapters[: -self.settings.serve.max_loras], self._adapters[-self.settings.serve.max_loras :]
        return AdapterWeights(version=version, model=name, folder=folder.absolute(), older=older)

    def close(self) -> None:
        """Hang up, stop a server that the run started, and remove what went through the folder for weights."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._hang_up(), 3 * CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_SECONDS)
            self._loop.close()
        finally:
            self._stop()
            if self.context.rank == 0:
                self.files.remove()

    async def _hang_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=CLOSE_SECONDS) if others else None
        await self._fleet.close()
