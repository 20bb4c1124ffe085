"""A server that speaks OpenEnv's protocol without OpenEnv: number guessing, a calculator of tools, and faults to inject.

It answers as openenv 0.10.0 does: test_openenv.py holds the two against each other.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, ClassVar, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

HIGHEST = 40
GUESSES = 3
BASE = {"metadata": {"type": "object", "additionalProperties": True, "title": "Metadata"}}
OBSERVED = {
    "done": {"type": "boolean", "default": False},
    "reward": {"anyOf": [{"type": "boolean"}, {"type": "integer"}, {"type": "number"}, {"type": "null"}], "default": None},
    **BASE,
}
GUESS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {**BASE, "guess": {"type": "integer", "minimum": 0, "maximum": HIGHEST}},
    "required": ["guess"],
}
HINT = {"type": "object", "properties": {**OBSERVED, "hint": {"type": "string"}}, "required": ["hint"]}
CALL = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **BASE,
        "type": {"const": "call_tool", "default": "call_tool"},
        "tool_name": {"type": "string"},
        "arguments": {"type": "object", "additionalProperties": True},
    },
    "required": ["tool_name"],
}
RESULT = {"type": "object", "properties": {**OBSERVED, "tool_name": {"type": "string"}, "result": {}, "error": {}}}
ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
}

FAIL = {
    "name": "fail",
    "description": "Fail.",
    "input_schema": {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]},
}

Answer = dict[str, Any]


def observation(fields: Answer, reward: float | None = None, done: bool = False) -> Answer:
    """Return the message with an observation."""
    return {"type": "observation", "data": {"observation": {**fields, "metadata": {}}, "reward": reward, "done": done}}


def failure(code: str, message: str, **more: Any) -> Answer:
    """Return the message with an error."""
    return {"type": "error", "data": {"message": message, "code": code, **more}}


def invalid(field: str, message: str) -> Answer:
    """Return the message with pydantic's error on a field."""
    return failure("VALIDATION_ERROR", "Invalid message", errors=[{"loc": [field], "msg": message, "type": "some"}])


class Guessing:
    """What examples/openenv/guess_server.py is: find a number from 0 to 40 in three guesses."""

    schema: ClassVar[Answer] = {"action": GUESS, "observation": HINT, "state": {"type": "object"}}

    def __init__(self) -> None:
        self.number = self.guesses = 0

    def reset(self, seed: int | None = None, answer: str | None = None, **_: Any) -> Answer:
        """Choose the number."""
        self.number = random.Random(seed).randint(0, HIGHEST) if answer is None else int(answer)
        self.guesses = 0
        return observation({"hint": f"Guess 0 to {HIGHEST}." if answer is None else ""})

    def step(self, action: Answer) -> Answer:
        """Compare a guess with it."""
        guess, wrong = action.get("guess"), action.keys() - {"guess", "metadata"}
        if wrong:
            return invalid(wrong.pop(), "Extra inputs are not permitted")
        if not isinstance(guess, int):
            return invalid("guess", "Field required" if guess is None else "Input should be a valid integer")
        if not 0 <= guess <= HIGHEST:
            return invalid("guess", f"Input should be less than or equal to {HIGHEST}")
        self.guesses += 1
        if guess == self.number:
            return observation({"hint": "right"}, reward=1 - (self.guesses - 1) / GUESSES, done=True)
        return observation({"hint": "higher" if guess < self.number else "lower"}, reward=0.0, done=self.guesses == GUESSES)

    def state(self) -> Answer:
        """Tell what no policy may know."""
        return {"number": self.number}


class Calculator:
    """What calculator_server.py is: two tools, as OpenEnv's MCP environments offer theirs."""

    schema: ClassVar[Answer] = {"action": CALL, "observation": RESULT, "state": {"type": "object"}}

    def reset(self, **options: Any) -> Answer:
        """Begin, with nothing to see, unless told to fail."""
        if "fail" in options:
            raise ValueError(f"told to fail: {options['fail']}")
        return observation({})

    def step(self, action: Answer) -> Answer:
        """List the tools, or call one."""
        if action.get("type") == "list_tools":
            return observation({"tools": [ADD, FAIL]})
        name, arguments = action.get("tool_name"), action.get("arguments", {})
        if not isinstance(arguments, dict):
            return invalid("arguments", "Input should be a valid dictionary")
        if name == "add" and arguments.keys() == {"a", "b"}:
            return called("add", arguments["a"] + arguments["b"])
        if name == "fail":
            return called("fail", None, "execution_error", f"Error calling tool 'fail': {arguments['why']}")
        if name == "add":
            return called("add", None, "invalid_args", "Missing required argument")
        return called(name, None, "tool_not_found", f"Unknown tool: {name!r}")

    def state(self) -> Answer:
        """Tell nothing."""
        return {}


def called(name: Any, data: Any, kind: str | None = None, message: str = "") -> Answer:
    """Return the message with a tool's answer: its data, or what went wrong."""
    if kind is not None:
        return observation({"tool_name": name, "result": None, "error": {"error_type": kind, "message": message}})
    content = [{"type": "text", "text": str(data), "annotations": None, "meta": None}]
    result = {"content": content, "structured_content": {"result": data}, "meta": None, "data": data, "is_error": False}
    return observation({"tool_name": name, "result": result, "error": None})


Fault = Callable[[ServerConnection, Answer], Coroutine[Any, Any, bool]]
"""Called with a connection and a message; returns whether it has dealt with the message."""


class FakeServer:
    """Serves an environment on loopback in a thread of its own, as a context manager."""

    def __init__(self, environment: type[Any] = Guessing, max_sessions: int = 64, port: int = 0) -> None:
        self.environment = environment
        self.max_sessions = max_sessions
        self.port = port
        self.fault: Fault | None = None
        """What to do instead of answering, where that is so."""
        self.schema: str | None = None
        """The text at /schema, in the place of the environment's."""
        self.counts: Counter[str] = Counter()
        """Messages by type, connections and refusals."""
        self.active: set[ServerConnection] = set()
        """Connections with a session."""
        self.resets: list[Answer] = []
        """What resets were given."""
        self._handlers: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self.end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def kill(self) -> None:
        """End as a killed process does: every connection breaks, and there is nobody any more."""
        self._call(self.end())

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> None:
        self._server = await serve(
            self._session, "127.0.0.1", self.port, process_request=self._http, ping_interval=None, compression=None, max_size=None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def end(self) -> None:
        for connection in list(self._server.connections):
            connection.transport.abort()
        for handler in list(self._handlers):
            handler.cancel()
        self._server.close()
        await self._server.wait_closed()

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/ws":
            return None
        pages = {
            "/schema": self.schema or json.dumps(self.environment.schema),
            "/metadata": json.dumps({"name": self.environment.__name__, "description": self.environment.__doc__}),
        }
        if request.path not in pages:
            return connection.respond(HTTPStatus.NOT_FOUND, "not found")
        body = pages[request.path].encode()
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
        return Response(200, "OK", headers, body)

    async def _session(self, connection: ServerConnection) -> None:
        self.counts["connections"] += 1
        if len(self.active) >= self.max_sessions:
            self.counts["refusals"] += 1
            numbers = {"active_sessions": len(self.active), "max_sessions": self.max_sessions}
            await connection.send(json.dumps(failure("CAPACITY_REACHED", "Server at capacity", **numbers)))
            return
        self.active.add(connection)
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        environment = self.environment()
        try:
            async for text in connection:
                message = json.loads(text)
                self.counts[message.get("type")] += 1
                if self.fault is not None and await self.fault(connection, message):
                    continue
                if message.get("type") == "close":
                    break
                await connection.send(json.dumps(self._answer(environment, message)))
        except ConnectionClosed:
            pass
        finally:
            self.active.discard(connection)
            self._handlers.discard(handler)

    def _answer(self, environment: Any, message: Answer) -> Answer:
        type_, data = message.get("type"), message.get("data", {})
        try:
            if type_ == "reset":
                self.resets.append(data)
                return environment.reset(**data)
            if type_ == "step":
                return environment.step(data)
        except Exception as error:
            return failure("EXECUTION_ERROR", str(error))
        if type_ == "state":
            return {"type": "state", "data": environment.state()}
        return failure("UNKNOWN_TYPE", f"Unknown message type: {type_}")


if __name__ == "__main__":
    with FakeServer(port=int(sys.argv[1])):
        print("ready", flush=True)
        threading.Event().wait()
