"""The guard, asked as an ASGI server asks it: nothing but /health passes without the token."""

from __future__ import annotations

import asyncio
import os

import pytest

from truing_vllm.inside.guard import Guard

TOKEN = "a-token"
ROUTES = [
    *("/v1/completions", "/v1/models", "/inference/v1/generate", "/v1/load_lora_adapter", "/adapters", "/invocations", "/tokenize"),
    *(
        "/metrics",
        "/pause",
        "/resume",
        "/collective_rpc",
        "/server_info",
        "/update_weights",
        "/openapi.json",
        "/docs",
        "/ping",
        "/",
    ),
    *("/health/", "//health", "/health/../pause", "/HEALTH"),
]


def ask(path: str, *, method: str = "GET", headers: tuple = (), type: str = "http") -> list:
    """Return what is sent back; the application behind answers 200, and accepts a WebSocket."""
    sent: list = []

    async def app(scope, receive, send):
        kind = {"http": {"type": "http.response.start", "status": 200, "headers": []}, "websocket": {"type": "websocket.accept"}}
        await send(kind.get(scope["type"], {"type": "lifespan.startup.complete"}))

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app)({"type": type, "path": path, "method": method, "headers": headers}, None, send))
    return sent


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TRUING_GUARD_TOKEN", TOKEN)
    monkeypatch.setenv("TRUING_GUARD_BOOT", "b1")
    monkeypatch.setenv("TRUING_GUARD_STARTER", str(os.getpid()))


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_no_route_is_open(path, method):
    start, body = ask(path, method=method)
    assert start["status"] == 401 and b"token" in body["body"]


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_is_open_with_the_token(path):
    (start,) = ask(path, headers=((b"authorization", f"Bearer {TOKEN}".encode()),))
    assert (start["status"], start["headers"]) == (200, [(b"x-truing-boot", b"b1")])


@pytest.mark.parametrize(
    "headers",
    [
        ((b"authorization", b"Bearer wrong"),),
        ((b"authorization", TOKEN.encode()),),
        ((b"authorization", f"bearer {TOKEN}".encode()),),
        ((b"authorization", b""),),
        ((b"authorization", "Bearer é".encode()),),
        ((b"authorization", f"Bearer {TOKEN}".encode()), (b"authorization", b"Bearer wrong")),
        ((b"x-api-key", f"Bearer {TOKEN}".encode()),),
    ],
)
def test_what_is_not_the_token_does_not_pass(headers):
    assert ask("/pause", method="POST", headers=headers)[0]["status"] == 401


def test_health_is_open_for_reading_alone():
    assert ask("/health")[0]["status"] == 200
    assert ask("/health", method="POST")[0]["status"] == 401


def test_a_websocket_without_the_token_is_closed():
    assert ask("/v1/realtime", type="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert (
        ask("/v1/realtime", type="websocket", headers=((b"Authorization", f"Bearer {TOKEN}".encode()),))[0]["type"]
        == "websocket.accept"
    )


def test_the_application_may_start_and_end():
    assert ask("", type="lifespan") == [{"type": "lifespan.startup.complete"}]


def test_without_a_token_the_server_does_not_start(monkeypatch):
    monkeypatch.delenv("TRUING_GUARD_TOKEN")
    with pytest.raises(KeyError, match="TRUING_GUARD_TOKEN"):
        ask("/health")


def test_with_an_empty_token_the_server_does_not_start(monkeypatch):
    monkeypatch.setenv("TRUING_GUARD_TOKEN", "")
    with pytest.raises(ValueError, match="TRUING_GUARD_TOKEN is empty, .*; set it to a text"):
        ask("/health")
