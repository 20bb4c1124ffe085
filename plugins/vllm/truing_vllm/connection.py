"""HTTP to one server: JSON out, JSON in, whole and in time or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2 as httpx
import msgspec

from truing_vllm.address import Address
from truing_vllm.faults import (
    AbsentError,
    BadAnswerError,
    BusyError,
    LateError,
    NoRouteError,
    RefusedError,
    ServerFault,
    UnreachableError,
)

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 3.0
"""Connections are not used again after so long: vLLM closes those idle for 5 seconds, and a request on its way would be lost."""
SMALL = 1 << 20
"""Most bytes of an answer that is no completion."""
_SHOWN = 300
_NO_ROUTE = b'{"detail":"Not Found"}'
"""What FastAPI says of a path that it does not have; what vLLM does not find below one, it says otherwise."""


class Connection:
    """Calls to one server. To be used within one event loop.

    Each call in flight has a client to itself, for httpx looks at all connections of a pool at every call: with a thousand of them
    that took longer than all the rest.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._ssl = httpx.create_ssl_context(trust_env=False)
        self._idle: list[httpx.AsyncClient] = []
        self._closed = False

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        client = self._idle.pop() if self._idle else self._new_client()
        try:
            yield client
        finally:
            if self._closed:
                await client.aclose()
            else:
                self._idle.append(client)

    def _new_client(self) -> httpx.AsyncClient:
        token, limits = self.address.token, httpx.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS)
        return httpx.AsyncClient(
            base_url=self.address.base_url,
            headers={} if token is None else {"authorization": f"Bearer {token}"},
            transport=httpx.AsyncHTTPTransport(verify=self._ssl, uds=self.address.socket, limits=limits),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    def __str__(self) -> str:
        return self.address.url

    async def get(self, path: str, *, seconds: float) -> Any:
        """Return what a path says. Raises a ServerFault."""
        body = await self._call("GET", path, None, seconds=seconds, limit=SMALL)
        return _decoded(body, Any, self) if body else None

    async def post(self, path: str, body: Mapping[str, Any], *, seconds: float) -> None:
        """Have the server do something. Raises a ServerFault."""
        await self._call("POST", path, body, seconds=seconds, limit=SMALL)

    async def ask(self, path: str, body: Mapping[str, Any], answer: type[Any], *, seconds: float, limit: int) -> Any:
        """Return an answer of that type, of `limit` bytes at most. Raises a ServerFault."""
        return _decoded(await self._call("POST", path, body, seconds=seconds, limit=limit), answer, self)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None, *, seconds: float, limit: int) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(seconds),
                self._client() as client,
                client.stream(method, path, content=content, headers=headers) as response,
            ):
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > limit:
                        raise BadAnswerError(f"{self} answered {path} with more than {limit:,} bytes")
        except TimeoutError as error:
            raise LateError(f"{self} did not answer {path} in full within {seconds:.0f} s") from error
        except httpx.HTTPError as error:
            kind = AbsentError if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else UnreachableError
            raise kind(f"{self} is not there: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code != 200:
            raise _refusal(self, path, response.status_code, bytes(data))
        return bytes(data)

    async def close(self) -> None:
        """Hang up; what is in flight is broken off, and the server aborts it."""
        self._closed = True
        for client in self._idle:
            await client.aclose()


def _decoded(data: bytes, type_: Any, connection: Connection) -> Any:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadAnswerError(f"{connection} gave an answer that cannot be read: {error}") from error


def _refusal(connection: Connection, path: str, status: int, data: bytes) -> ServerFault:
    message = f"{connection} answered {path} with {status}: {data[:_SHOWN].decode(errors='replace')}"
    if status in (429, 503):
        return BusyError(message)
    if status == 404 and data == _NO_ROUTE:
        return NoRouteError(message, status)
    return RefusedError(message, status) if 400 <= status < 500 else BadAnswerError(message)
