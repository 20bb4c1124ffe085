"""Finds out which way of generating is exact for a loaded model: numbers decide, not names."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

from truing import RolloutRequest, Sampling
from truing.errors import first_line
from truing.model.attention import own_attention, why_not_shared_prefix
from truing.model.lent import lent
from truing.model.logits import Head, wide
from truing.model.probe import TOLERANCE
from truing_transformers.library import LibraryGenerate
from truing_transformers.row import Group, Row, rows_of
from truing_transformers.sampler import Sampler
from truing_transformers.shared import SharedPrompts

TOKENS = 8
"""Of each probed completion."""
LONGEST_WINDOW = 512
"""Prompts are longer than a sliding window up to this one, so that what it hides shows."""


class Way(Protocol):
    """How rows are completed."""

    def complete(self, groups: Sequence[Group], sampler: Sampler, ends: Collection[int]) -> Iterator[Row]:
        """Yield every row of every group once, finished."""


@attrs.frozen
class Choice:
    """How the run generates, and the sentence that says why."""

    way: Way
    reason: str


def choose_way(model: PreTrainedModel, max_batch_tokens: int) -> Choice:
    """Return the fast way where it is exact for this model, and generate() where it is not.

    Completions of two random prompts are sampled the fast way, and their log-probabilities compared with those of plain passes:
    with the logits of the model's head, and where these are not all that it does, with its own.
    """
    attention = own_attention(model)
    problem = why_not_shared_prefix(model)
    if problem is None:
        for head in (Head.of(model), None):
            shared = SharedPrompts(model, max_batch_tokens, head)
            problem = _flaw(model, shared, attention)
            if problem is None:
                return Choice(shared, "every prompt computed once (probed: equal to plain passes)")
    return Choice(LibraryGenerate(model, attention), f"by generate(), a prompt computed for every completion, because {problem}")


def _flaw(model: PreTrainedModel, way: Way, attention: str) -> str | None:
    """Return in what the log-probabilities of a way's completions differ from plain ones, or None."""
    groups = [rows_of(request) for request in _requests(model)]
    try:
        rows = list(way.complete(groups, Sampler(Sampling()), ends=()))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a foreign model does with inputs that it cannot take is its own
        return f"its code fails ({first_line(error)[:160]})"
    if any(row.finish_reason == "error" for row in rows):
        return "its log-probabilities are not finite"
    with lent(model, attention):
        plain = [_plain_logps(model, row) for row in rows]
    gap = max(float((logps - logps.new_tensor(row.token_logps)).abs().max()) for logps, row in zip(plain, rows, strict=True))
    device = model.device.type
    allowed = TOLERANCE[torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype]
    return None if gap <= allowed else f"its log-probabilities differ from plain ones by {gap:.1e} nats (allowed: {allowed:g})"


def _requests(model: PreTrainedModel) -> list[RolloutRequest]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    longest = 8 + (window if window <= LONGEST_WINDOW else 0)
    draw = random.Random(0)
    return [
        RolloutRequest(
            id=str(length),
            prompt_ids=tuple(draw.randrange(config.vocab_size) for _ in range(length)),
            seeds=(1, 2),
            sampling=Sampling(max_completion_length=TOKENS),
        )
        for length in (longest, longest // 2)
    ]


def _plain_logps(model: PreTrainedModel, row: Row) -> Tensor:
    """Return the log-probabilities of a row's tokens by one pass over its sequence alone."""
    ids = torch.tensor([[*row.request.prompt_ids, *row.token_ids]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(row.request.prompt_ids) - 1 : -1]
    logps: Tensor = logits.to(wide(logits.dtype)).log_softmax(-1)
    return logps.gather(-1, ids[0, -len(row.token_ids) :].unsqueeze(-1)).squeeze(-1).cpu()
