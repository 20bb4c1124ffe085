"""A server as a run uses it: sessions of it, as many at once as there may be, each begun with patience."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing.errors import RolloutError
from truing_openenv.address import Address
from truing_openenv.protocol import (
    FullServerError,
    InvalidActionError,
    LostSessionError,
    SessionError,
    Turn,
    UnreachableError,
)
from truing_openenv.session import Session

RECONNECTIONS = 3
"""How often a session is tried anew that is lost before its episode has begun."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between tries, each pause twice the one before."""


@attrs.define(eq=False)
class Server:
    """Opens and closes sessions, `capacity` at most, in one event loop."""

    address: Address
    capacity: int
    timeout: float
    """Seconds that a step may take, and the beginning of an episode: the wait for a place, the connection and the reset."""
    opened: int = attrs.field(default=0, init=False)
    """Sessions that have begun."""
    refused: int = attrs.field(default=0, init=False)
    """How often the server had no room for one."""
    _aborted: bool = attrs.field(default=False, init=False)
    _open: set[Session] = attrs.field(factory=set, init=False)
    _places: asyncio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.capacity)

    @property
    def open_sessions(self) -> int:
        """How many sessions there are now."""
        return len(self._open)

    async def begin(self, data: Mapping[str, Any]) -> tuple[Session, Turn]:
        """Return a session in which an episode has begun, and the first observation.

        Raises SessionError, and RolloutError where there is no server all the time.
        """
        deadline = _now() + self.timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise SessionError(f"none of {self.capacity} sessions at {self.address} was free within {self.timeout:g} s") from None
        try:
            session, turn = await self._patiently(data, deadline)
        except BaseException:
            self._places.release()
            raise
        self.opened += 1
        return session, turn

    async def _patiently(self, data: Mapping[str, Any], deadline: float) -> tuple[Session, Turn]:
        """Connect and reset; again where there is no server or no room yet, until the deadline, and where a connection was lost."""
        losses, pause = 0, FIRST_PAUSE
        while not self._aborted:
            try:
                return await self._try(data, deadline)
            except UnreachableError as error:
                if _now() + pause > deadline:
                    raise RolloutError(f"{error}, for {self.timeout:g} s; start the server again") from None
            except FullServerError as error:
                self.refused += 1
                if _now() + pause > deadline:
                    raise SessionError(f"{error}; waited {self.timeout:g} s") from None
            except LostSessionError:
                losses += 1
                if losses > RECONNECTIONS:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise SessionError(f"sessions at {self.address} are no longer opened, for the run ends")

    async def _try(self, data: Mapping[str, Any], deadline: float) -> tuple[Session, Turn]:
        session = await Session.open(self.address, deadline - _now())
        self._open.add(session)
        try:
            return session, await session.reset(data, deadline - _now())
        except BaseException:
            self._open.discard(session)
            await session.close()
            raise

    async def end(self, session: Session) -> None:
        """Close a session that has begun; another may take its place."""
        if session in self._open:
            self._open.remove(session)
            try:
                await session.close()
            finally:
                self._places.release()

    def abort(self) -> None:
        """Break off all sessions, from any thread, and open no more."""
        self._aborted = True
        for session in tuple(self._open):
            session.abort()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def find_room(address: Address, wanted: int, timeout: float) -> tuple[int, int | None]:
    """Return how many sessions, up to `wanted`, a server has room for now, and how many it allows, where it says so.

    It is asked by opening them, more and more at once, for a server tells its limit only when it refuses. Raises SessionError.
    """
    sessions: list[Session] = []
    try:
        while len(sessions) < wanted:
            more = min(len(sessions) or 1, wanted - len(sessions))
            results = await asyncio.gather(*(_checked(address, timeout) for _ in range(more)), return_exceptions=True)
            sessions += [result for result in results if isinstance(result, Session)]
            failures = [result for result in results if isinstance(result, BaseException)]
            for failure in failures:
                if not isinstance(failure, FullServerError):
                    raise failure
            if failures:
                return len(sessions), next((one.max_sessions for one in failures if isinstance(one, FullServerError)), None)
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    return len(sessions), None


async def list_tools(address: Address, timeout: float) -> Sequence[Mapping[str, Any]]:
    """Return the tools of an MCP environment as chat templates read them. Raises SessionError."""
    session = await Session.open(address, timeout)
    try:
        turn = await session.step({"type": "list_tools"}, timeout)
    except InvalidActionError as error:
        raise SessionError(f"{address} does not list its tools: {error}") from error
    finally:
        await session.close()
    found = turn.observation.get("tools")
    tools = [tool for tool in found if isinstance(tool, Mapping)] if isinstance(found, list) else []
    if not tools or not all(isinstance(tool.get("name"), str) and isinstance(tool.get("input_schema"), Mapping) for tool in tools):
        raise SessionError(f"{address} lists {str(found)[:80]} as its tools, and each must have a name and an input_schema")
    return [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": str(tool.get("description") or ""),
                "parameters": tool["input_schema"],
            },
        }
        for tool in tools
    ]


async def _checked(address: Address, timeout: float) -> Session:
    """Return a session that the server has room for."""
    session = await Session.open(address, timeout)
    try:
        await session.check(timeout)
    except BaseException:
        await session.close()
        raise
    return session
