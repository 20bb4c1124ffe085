"""One session: a connection to a server, which holds an environment for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import CloseCode

from truing_openenv.address import Address
from truing_openenv.protocol import (
    MOST_BYTES,
    LostSessionError,
    SessionError,
    Turn,
    UnreachableError,
    check_state,
    read_turn,
    request,
)

CLOSE_SECONDS = 5.0
"""How long a server has to end a session that it was told to end."""


class Session:
    """Asks and waits for the answer, each under a deadline. After an error no answer can be trusted, and it asks no more."""

    def __init__(self, connection: ClientConnection, address: Address) -> None:
        self._connection = connection
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._failed = False

    @classmethod
    async def open(cls, address: Address, timeout: float) -> Self:
        """Connect. Raises UnreachableError where that fails. Whether there is room for a session, the first answer says."""
        try:
            async with asyncio.timeout(timeout):
                connection = await connect(
                    address.session_url,
                    proxy=address.proxy,
                    open_timeout=None,
                    ping_interval=None,
                    close_timeout=CLOSE_SECONDS,
                    compression=None,
                    max_size=MOST_BYTES,
                )
        except TimeoutError:
            raise UnreachableError(f"{address} did not open a connection within {timeout:.3g} s") from None
        except (OSError, WebSocketException) as error:
            raise UnreachableError(f"cannot connect to {address}: {str(error) or type(error).__name__}") from error
        return cls(connection, address)

    async def reset(self, data: Mapping[str, Any], timeout: float) -> Turn:
        """Begin an episode. Raises SessionError, and LostSessionError or FullServerError where another try may do."""
        return read_turn(await self._ask("reset", data, timeout), self._address)

    async def step(self, action: Mapping[str, Any], timeout: float) -> Turn:
        """Act. Raises InvalidActionError for an action that the environment does not take, and SessionError."""
        return read_turn(await self._ask("step", action, timeout), self._address)

    async def check(self, timeout: float) -> None:
        """Wait until the server has a session for this connection. Raises SessionError, FullServerError where it has no room."""
        check_state(await self._ask("state", None, timeout), self._address)

    async def close(self) -> None:
        """End the session and the connection, whatever state they are in, within a few seconds."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if not self._failed:
                    await self._connection.send(request("close"))
                    # the server closes the connection when the session's place is free again
                    await self._connection.wait_closed()
                await self._connection.close()
        except (TimeoutError, OSError, ConnectionClosed):
            pass
        finally:
            self._connection.transport.abort()

    def abort(self) -> None:
        """Break the connection, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._connection.transport.abort)

    async def _ask(self, type_: str, data: Mapping[str, Any] | None, timeout: float) -> bytes:
        """Send a message and return the answer to it."""
        message = request(type_, data)
        if self._failed:
            raise SessionError(f"{self._address} owes this session an answer, so that it cannot be asked for a {type_}")
        self._failed = True  # until the answer is here
        try:
            async with asyncio.timeout(timeout):
                with contextlib.suppress(ConnectionClosed):  # what a server says before it hangs up can still be read
                    await self._connection.send(message)
                answer = await self._connection.recv(decode=False)
        except TimeoutError:
            raise SessionError(f"{self._address} did not answer a {type_} within {timeout:.3g} s") from None
        except ConnectionClosed as error:
            raise self._lost(type_, error) from error
        self._failed = False
        return answer

    def _lost(self, type_: str, error: ConnectionClosed) -> SessionError:
        if error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG:
            return SessionError(f"{self._address} answered a {type_} with more than {MOST_BYTES:,} bytes")
        return LostSessionError(f"{self._address} ended the connection instead of answering a {type_}: {error}")
