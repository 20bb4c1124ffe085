"""A token before every route of the server, for vLLM's own key does not guard all of them, and an end with its starter.

Imports Python's library alone.
"""

from __future__ import annotations

import hmac
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BOOT_HEADER = "x-truing-boot"
"""In every answer of a server that `vllm-serve` started: text that is another one after every start."""
OPEN = "/health"
"""The one route that anybody may ask."""
_POLL_SECONDS = 1.0


class Guard:
    """ASGI middleware, for `vllm serve --middleware`: asks for `Authorization: Bearer TOKEN`, and says which start this is.

    The token and the start's name are environment variables, TRUING_GUARD_TOKEN and TRUING_GUARD_BOOT: KeyError without them, and
    ValueError for an empty token. When the process TRUING_GUARD_STARTER is gone, however it ended, so is the server.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        token = os.environ["TRUING_GUARD_TOKEN"]
        if not token:
            raise ValueError(
                "TRUING_GUARD_TOKEN is empty, and whoever reaches a server could replace its weights; set it to a text"
            )
        self.expected = f"Bearer {token}".encode()
        self.boot = (BOOT_HEADER.encode(), os.environ["TRUING_GUARD_BOOT"].encode())
        starter = int(os.environ["TRUING_GUARD_STARTER"])
        threading.Thread(target=_end_with, args=(starter,), name="truing guard", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on if it may pass; refuse it with 401, and a WebSocket by closing it, if not."""

        async def send_marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self.boot]}
            await send(message)

        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self.app(scope, receive, send_marked)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send_marked({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error":"send the token of this server"}'})

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] == "http" and scope["path"] == OPEN and scope["method"] == "GET":
            return True
        given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.expected)


def _end_with(starter: int) -> None:
    """End the process group of the server, which its starter made for it, when the starter is gone."""
    try:
        while True:
            os.kill(starter, 0)
            time.sleep(_POLL_SECONDS)
    except ProcessLookupError:
        os.killpg(0, signal.SIGTERM)
