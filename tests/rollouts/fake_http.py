"""A small HTTP/1.1 server on asyncio, in a thread of its own, whose answers can be spoilt on their way."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

BIND_SECONDS = 10.0
"""How long a port may be taken by another."""


@attrs.frozen
class Reply:
    """What goes back: a status, and JSON or bytes as they are."""

    body: Any = None
    status: int = 200
    drip: float = 0.0
    """Seconds between its bytes; 0 for all at once."""
    cut: bool = False
    """Whether half of the body is left out, and the length says so."""

    def encoded(self, headers: dict[str, str]) -> bytes:
        body = self.body if isinstance(self.body, bytes) else b"" if self.body is None else json.dumps(self.body).encode()
        body = body[: len(body) // 2] if self.cut else body
        lines = [
            f"HTTP/1.1 {self.status} X",
            f"content-length: {len(body)}",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


Handler = Callable[[str, str, dict[str, str], Any], Awaitable[Reply]]
"""From method, path, headers and JSON body to a reply."""


class HttpThread:
    """Listens on a loopback port, or on a unix socket, until it is stopped; `die` breaks every connection off."""

    def __init__(self, handler: Handler, socket: str | None = None) -> None:
        self.handler, self.socket = handler, socket
        self.headers: dict[str, str] = {}
        self.port = 0
        self.open_requests = 0
        self.hang_ups = 0
        """Requests that the client broke off."""
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self.listen())

    @property
    def url(self) -> str:
        return f"unix:{self.socket}" if self.socket else f"http://127.0.0.1:{self.port}"

    def call(self, work: Awaitable[Any]) -> Any:
        """Return what a coroutine returns in the server's thread."""

        async def run() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    async def listen(self) -> None:
        if self.socket:
            self._server = await asyncio.start_unix_server(self._serve, self.socket, backlog=2048)
        else:
            self._server = await self._bound(time.monotonic() + BIND_SECONDS)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _bound(self, deadline: float) -> asyncio.Server:
        """Listen on a port, the same as before a death; a connection that the test has going may have taken it meanwhile."""
        while True:
            try:
                return await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=2048)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def die(self) -> None:
        """Stop to listen, and break off what is in flight, as a killed process does."""
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in rest if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        self.open_requests += 1
        try:
            reply = await self._unless_hung_up(reader, self.handler(method, path, headers, json.loads(raw) if raw else None))
        finally:
            self.open_requests -= 1
        if reply is None:
            self.hang_ups += 1
            return False
        data = reply.encoded(self.headers)
        for part in (data[i : i + 1] for i in range(len(data))) if reply.drip else (data,):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(reply.drip) if reply.drip else None
        return True

    async def _unless_hung_up(self, reader: asyncio.StreamReader, work: Awaitable[Reply]) -> Reply | None:
        """Return the reply; None where the client went away first, and the work is broken off."""
        working = asyncio.ensure_future(work)
        try:
            while not working.done():
                await asyncio.wait([working], timeout=0.02)
                if reader.at_eof():
                    working.cancel()
                    return None
            return await working
        except asyncio.CancelledError:
            working.cancel()
            raise

    def stop(self) -> None:
        if not self.loop.is_closed():
            self.call(self.die())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()
