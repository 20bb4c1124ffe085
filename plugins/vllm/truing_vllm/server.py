"""One server as the run sees it: how to have it sample, and what is known of its weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing_vllm.connection import Connection
from truing_vllm.faults import BadAnswerError, RefusedError
from truing_vllm.updates import Update
from truing_vllm.wire import (
    COMPLETIONS,
    GENERATE,
    Completed,
    Generated,
    Sample,
    answer_limit,
    completed,
    completions_body,
    generate_body,
    generated,
)

_NO_ROUTE = (403, 404, 405)


@attrs.define(eq=False)
class Server:
    """A connection, and what the run knows of the other end."""

    connection: Connection
    up: bool = True
    """Whether it may be asked; where not, a task waits for it to come back."""
    in_flight: int = 0
    installed: Update | None = None
    """The weights that it was given last, and that its log-probabilities showed."""
    boot: str | None = None
    """Which start of it that was; None where it does not say."""
    epoch: int = 0
    """Whatever was asked before this changed is to be asked again, for the weights were not what they should have been."""
    answered: float = 0.0
    """When it last gave a completion, by the clock of the event loop."""
    settled: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Whether its weights are known; not while it gets new ones."""
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """Held by whoever gives it weights."""
    _route: str | None = None
    _model: str | None = None

    def __attrs_post_init__(self) -> None:
        self.settled.set()

    def __str__(self) -> str:
        return str(self.connection)

    async def sample(
        self, prompt: Sequence[int], params: Mapping[str, Any], model: str | None, *, seconds: float
    ) -> tuple[Sample, str | None]:
        """Return a completion, and which start of the server gave it.

        The route that says which weights sampled which token is taken where the server has it. Raises a ServerFault.
        """
        if self._route != COMPLETIONS:
            try:
                found = await self._generate(prompt, params, model, seconds)
            except RefusedError as fault:
                if self._route == GENERATE or fault.status not in _NO_ROUTE:
                    raise
            else:
                self._route = GENERATE
                return found
        found = await self._complete(prompt, params, model, seconds)
        self._route = COMPLETIONS
        return found

    async def _generate(
        self, prompt: Sequence[int], params: Mapping[str, Any], model: str | None, seconds: float
    ) -> tuple[Sample, str | None]:
        limit = params["max_tokens"]
        body, size = generate_body(prompt, params, model), answer_limit(len(prompt), limit)
        answer, boot = await self.connection.ask(GENERATE, body, Generated, seconds=seconds, limit=size)
        return generated(answer, limit), boot

    async def _complete(
        self, prompt: Sequence[int], params: Mapping[str, Any], model: str | None, seconds: float
    ) -> tuple[Sample, str | None]:
        limit = params["max_tokens"]
        body, size = completions_body(prompt, params, model or await self._model_name(seconds)), answer_limit(len(prompt), limit)
        answer, boot = await self.connection.ask(COMPLETIONS, body, Completed, seconds=seconds, limit=size)
        return completed(answer, prompt, limit), boot

    async def _model_name(self, seconds: float) -> str:
        if self._model is None:
            models, _ = await self.connection.get("/v1/models", seconds=seconds)
            try:
                self._model = str(models["data"][0]["id"])
            except (KeyError, IndexError, TypeError) as error:
                raise BadAnswerError(f"{self} does not say which model it serves: {models!r}") from error
        return self._model
