"""A completion while it is written."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import attrs
import numpy as np

from truing import RolloutRequest
from truing.rollout.completion import FinishReason


@attrs.define(eq=False)
class Row:
    """One of a request's samples: what has been drawn of it, and the random numbers that it is drawn by."""

    request: RolloutRequest
    index: int
    limit: int
    """Tokens that it may have."""
    noise: np.random.Generator
    token_ids: list[int] = attrs.field(factory=list)
    token_logps: list[float] = attrs.field(factory=list)
    finish_reason: FinishReason | None = None
    """None while it goes on."""

    def add(self, token: int, logp: float, ends: Collection[int]) -> None:
        """Take the next token, which finishes the row if it is one of `ends`; so does a log-probability that is not finite."""
        if not math.isfinite(logp):
            self.finish_reason = "error"
            return
        self.token_ids.append(token)
        self.token_logps.append(logp)
        if token in ends:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.limit:
            self.finish_reason = "length"

    @property
    def position(self) -> int:
        """Where in its sequence the last token is."""
        return len(self.request.prompt_ids) + len(self.token_ids) - 1


Group = Sequence[Row]
"""The rows of one request, one for each of its seeds."""


def rows_of(request: RolloutRequest) -> list[Row]:
    """Return a row for each of the request's seeds."""
    limit = request.sampling.max_completion_length
    return [
        Row(request, index, limit, np.random.Generator(np.random.Philox(seed % 2**64))) for index, seed in enumerate(request.seeds)
    ]
