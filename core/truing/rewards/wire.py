"""What a run and the worker processes of its rewards say to each other: MessagePack, each message behind its length.

Messages are data alone, both ways, and read into these types: a worker runs a user's code and reads what a model wrote, and to
unpickle what comes from there would be to run it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from truing.errors import DataError
from truing.rewards.sources import Source
from truing.rollout.completion import Completion

LENGTH_BYTES = 4
LONGEST_ANSWER = 64 * 2**20
"""Bytes that a worker's message may have; one that claims more is not read."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """To a worker, first: what it may be asked for."""

    sources: tuple[Source, ...]
    seed: int
    memory: int | None
    """Bytes of data that the process may allocate."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """To a worker: make every reward, and say whether it could be made."""


class Call(msgspec.Struct, frozen=True, tag=True):
    """To a worker: score these completions with one of the sources."""

    id: int
    source: int
    timeout: float
    completions: tuple[Completion, ...]


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the answer to Load, with what was wrong with each source, "" for nothing."""

    faults: tuple[str, ...]


class Begun(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the reward is there, the call begins, and its deadline runs."""

    id: int
    compares: bool


class Awaiting(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the call is being awaited, so that another one can begin."""

    id: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the scores of a call."""

    id: int
    scores: tuple[float | None, ...]
    faults: dict[int, str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the call has no scores."""

    id: int
    fault: str
    retry: bool
    """Whether single completions may be scored where all of them could not."""
    retire: bool
    """Whether the process should not be used again."""


Question = Start | Load | Call
Answer = Loaded | Begun | Awaiting | Done | Failed

_NO_DATA = (TypeError, OverflowError, RecursionError, UnicodeEncodeError)
"""What encoding raises for objects, integers beyond 64 bits, endless nesting and lone surrogates."""
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(message: Question | Answer) -> bytes:
    """Return the bytes of a message. Raises DataError for a column with values that are no data, such as images."""
    try:
        data = _encoded(message)
    except _NO_DATA as error:
        raise DataError(
            f"{_where(message)} cannot be sent to a reward's process ({error}); drop it in the format, or hand the reward to "
            "truing.align as a function"
        ) from error
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def _where(message: Question | Answer) -> str:
    """Return which part of a row is no data."""
    for completion in message.completions if isinstance(message, Call) else ():
        for key, value in {**completion.columns, **completion.extra}.items():
            try:
                _encoded(value)
            except _NO_DATA:
                return f"column {key!r} of a row"
    return "a row"


def _encoded(thing: Any) -> bytes:
    return msgspec.msgpack.encode(thing, enc_hook=_plain)


def read_question(data: bytes) -> Question:
    """Return the message to a worker."""
    return _questions.decode(data)


def read_answer(data: bytes) -> Answer:
    """Return the message from a worker. Raises msgspec.DecodeError, of which ValidationError is one, for anything else."""
    return _answers.decode(data)


def _plain(value: Any) -> Any:
    """Return NumPy's values and arrays as Python's."""
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")
