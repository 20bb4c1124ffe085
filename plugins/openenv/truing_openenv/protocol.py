"""The messages of OpenEnv's WebSocket protocol: what is asked, and what is read of an answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

MOST_BYTES = 16 * 2**20
"""The longest message that is read: an observation is for a policy to read, and no model reads as much."""


class SessionError(Exception):
    """A session cannot go on: what its server did instead of answering."""


class UnreachableError(SessionError):
    """There is nobody to connect to."""


class LostSessionError(SessionError):
    """The connection is gone."""


class ExecutionError(SessionError):
    """The environment raised an error."""


class FullServerError(SessionError):
    """The server has as many sessions as it allows."""

    def __init__(self, message: str, max_sessions: int | None) -> None:
        super().__init__(message)
        self.max_sessions = max_sessions
        """How many it allows, where it says so."""


class InvalidActionError(Exception):
    """The environment does not take an action: what is wrong with it. The session goes on."""


class Turn(msgspec.Struct, frozen=True):
    """What an environment answers a reset or a step."""

    observation: dict[str, Any]
    reward: bool | int | float | None = None
    done: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """What was observed, without what every observation of OpenEnv has beside."""
        return {name: value for name, value in self.observation.items() if name not in BASE_FIELDS}


BASE_FIELDS = frozenset({"done", "reward", "metadata"})
"""Fields that every observation has."""


class _Failure(msgspec.Struct):
    message: str = ""
    code: str = ""
    errors: list[Any] = []
    max_sessions: int | None = None


class _Observed(msgspec.Struct, tag="observation"):
    data: Turn


class _State(msgspec.Struct, tag="state"):
    data: dict[str, Any]


class _Failed(msgspec.Struct, tag="error"):
    data: _Failure


_ENCODER = json.JSONEncoder(allow_nan=False)
_DECODER: msgspec.json.Decoder[_Observed | _State | _Failed] = msgspec.json.Decoder(_Observed | _State | _Failed)


def request(type_: str, data: Mapping[str, Any] | None = None) -> str:
    """Return the text of a message. Raises SessionError for data that is no JSON."""
    try:
        return _ENCODER.encode({"type": type_} if data is None else {"type": type_, "data": data})
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(f"the {type_} cannot be written as JSON: {error}") from error


def read_turn(text: bytes, server: object) -> Turn:
    """Return the turn that a message of a server is.

    Raises InvalidActionError, FullServerError or SessionError for an error that the server names, and SessionError for anything
    else.
    """
    answer = _read(text, server)
    if isinstance(answer, _State):
        raise SessionError(f"{server} answered with its state, which was not asked for")
    try:
        float(answer.data.reward or 0)
    except OverflowError:
        raise SessionError(f"{server} gave a reward that is larger than any floating-point number") from None
    return answer.data


def check_state(text: bytes, server: object) -> None:
    """Raise FullServerError or SessionError where the answer to a `state` message says that there is no session.

    What the state is, or that the environment cannot tell it, is of no interest: a session answered.
    """
    with contextlib.suppress(InvalidActionError, ExecutionError):
        _read(text, server)


def _read(text: bytes, server: object) -> _Observed | _State:
    try:
        answer = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        shown = text[:80].decode(errors="replace")
        raise SessionError(f"{server} answered {shown!r}, which is no message of the protocol: {error}") from error
    if isinstance(answer, _Failed):
        raise _error(answer.data, server)
    return answer


def _error(failure: _Failure, server: object) -> Exception:
    said = failure.message[:500] or "no reason"
    if failure.code == "VALIDATION_ERROR":
        return InvalidActionError("; ".join(map(_said, failure.errors[:5])) or said)
    if failure.code == "CAPACITY_REACHED":
        return FullServerError(f"{server} has no room for another session: {said}", failure.max_sessions)
    kind = ExecutionError if failure.code == "EXECUTION_ERROR" else SessionError
    return kind(f"{server} answered with {failure.code or 'an error'}: {said}")


def _said(error: Any) -> str:
    """Return a line on one fault that pydantic found."""
    if not isinstance(error, Mapping):
        return str(error)[:200]
    where = ".".join(map(str, error["loc"])) if isinstance(error.get("loc"), list) else ""
    return f"{where}: {str(error.get('msg', 'wrong'))[:200]}" if where else str(error.get("msg", "wrong"))[:200]
