"""A backend that samples beside the process that trains, without a model: letters at random, one after another, in threads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, ClassVar

import attrs

from truing import Completion, OpenContext, RolloutError, RolloutRequest, VersionSpan, WeightSource, setting
from truing.rollout.completion import generate_by_submitting
from truing.testing.fakes import LiveFakeRollout


class LiveLetters(LiveFakeRollout):
    """Completions depend on prompt and seed alone; only how long they take, and so their versions, does not."""

    def __init__(self, settings: Letters, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.settings = settings
        self.pushed: list[int] = []
        self.submitted: list[str] = []
        self.closed = False
        self._taken_at = 0
        self._threads = ThreadPoolExecutor(16)
        self._lock = Lock()

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        """Draw the letters in another thread."""
        with self._lock:
            self.submitted.append(request.id)
            if self.pushed and len(self.submitted) > self._taken_at:
                self.version = self.pushed[-1]
            if len(self.submitted) > self.settings.gone_after:
                raise RolloutError("the server at letters is gone")
        return self._threads.submit(self._draw, request)

    def _draw(self, request: RolloutRequest) -> tuple[Completion, ...]:
        return tuple(
            attrs.evolve(whole, versions=tuple(self._spans(len(whole.token_ids)))) for whole in super().generate([request])
        )

    def _spans(self, length: int) -> Iterator[VersionSpan]:
        versions = []
        for _ in range(length):
            versions.append(self.version)
            time.sleep(self.settings.seconds_per_token)
        starts = [at for at in range(length) if at == 0 or versions[at] != versions[at - 1]]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            yield VersionSpan(version=versions[start], start=start, end=end)

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield what `submit` gives."""
        return generate_by_submitting(self, requests)

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Take a version, at once or late."""
        self.pushed.append(version)
        self._taken_at = len(self.submitted) + self.settings.late_by
        if not self.settings.late_by:
            self.version = version

    def close(self) -> None:
        """End the threads."""
        self.closed = True
        self._threads.shutdown(cancel_futures=True)


@attrs.frozen(kw_only=True)
class Letters:
    """Random letters, slowly, beside the process that trains."""

    name: ClassVar[str] = "letters"
    seconds_per_token: float = setting(0.0, ge=0, help="How long a token takes.")
    gone_after: int = setting(10**9, ge=0, help="Requests after which the backend is gone.")
    late_by: int = setting(0, ge=0, help="Requests after which new weights are taken.")
    opened: list[LiveLetters] = attrs.field(factory=list, metadata={"internal": True}, eq=False)

    def open(self, context: OpenContext) -> LiveLetters:
        """Return a live one, which `opened` has too."""
        self.opened.append(LiveLetters(self, context.tokenizer))
        return self.opened[-1]
