"""One server as the run sees it: how to have it sample, and what is known of its weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing_vllm.connection import Connection
from truing_vllm.faults import BadAnswerError, RefusedError
from truing_vllm.updates import Update, model_names
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
    attempts: int = 0
    """How often it was tried to give it weights."""
    proven: set[int] = attrs.field(factory=set)
    """Those of the tries that a probe showed to have succeeded."""
    answered: float = 0.0
    """When it last gave a completion, by the clock of the event loop."""
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """Held by whoever gives it weights."""
    _route: str | None = None
    _model: str | None = None

    def __str__(self) -> str:
        return str(self.connection)

    @property
    def says_versions(self) -> bool:
        """Whether it is known to say which weights sampled which token."""
        return self._route == GENERATE

    async def sample(self, prompt: Sequence[int], params: Mapping[str, Any], model: str | None, *, seconds: float) -> Sample:
        """Return a completion.

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

    async def _generate(self, prompt: Sequence[int], params: Mapping[str, Any], model: str | None, seconds: float) -> Sample:
        limit = params["max_tokens"]
        body, size = generate_body(prompt, params, model), answer_limit(len(prompt), limit)
        return generated(await self.connection.ask(GENERATE, body, Generated, seconds=seconds, limit=size), limit)

    async def _complete(self, prompt: Sequence[int], params: Mapping[str, Any], model: str | None, seconds: float) -> Sample:
        limit = params["max_tokens"]
        body, size = completions_body(prompt, params, model or await self._model_name(seconds)), answer_limit(len(prompt), limit)
        return completed(await self.connection.ask(COMPLETIONS, body, Completed, seconds=seconds, limit=size), prompt, limit)

    async def _model_name(self, seconds: float) -> str:
        if self._model is None:
            said = await self.connection.get("/v1/models", seconds=seconds)
            names = model_names(said)
            if not names:
                raise BadAnswerError(f"{self} does not say which model it serves: {said!r}")
            self._model = names[0]
        return self._model
