"""Reads transcripts: text with "Human:" and "Assistant:" turns, as in Anthropic/hh-rlhf."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from truing import RowError

ROLES = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")

Row = dict[str, Any]


def turns(cfg: Any, dataset_idx: int = 0) -> Callable[[Row], Row]:
    """Return a function from a row with transcripts to one with messages; core splits off the prompt that both begin with."""
    del cfg, dataset_idx

    def transform_fn(example: Row) -> Row:
        return {column: read_turns(example[column], column) for column in ("chosen", "rejected")}

    return transform_fn


def read_turns(transcript: str, column: str) -> list[dict[str, str]]:
    """Return the messages of a transcript. Raises RowError where it does not begin with a turn."""
    before, *parts = TURN.split(transcript)
    if before.strip() or not parts:
        raise RowError(f"column {column!r} must begin with 'Human:' or 'Assistant:', got {transcript[:40]!r}")
    return [{"role": ROLES[speaker], "content": content.strip()} for speaker, content in zip(parts[::2], parts[1::2], strict=True)]
