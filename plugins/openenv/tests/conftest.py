from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from tests.rollouts.fake_openenv import FakeServer

from truing_openenv import OpenEnvRollout
from truing_openenv.environments import OpenEnvironments


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server of number guessing."""
    with FakeServer() as server:
        yield server


@pytest.fixture
def opened(fake) -> Iterator[Callable[..., OpenEnvironments]]:
    """Opens the environments of a server, the fake one by default; an episode's waits end after `timeout` seconds."""
    made: list[OpenEnvironments] = []

    def open_(server: FakeServer = fake, timeout: float = 20.0, num_ranks: int = 1, **settings: Any) -> OpenEnvironments:
        rollout = OpenEnvRollout(url=server.url, **{"max_sessions": 4, **settings})
        made.append(OpenEnvironments.open(rollout, 20.0, num_ranks))
        made[-1].server.timeout = timeout
        return made[-1]

    yield open_
    for one in made:
        one.close()


def says(text: str, *calls: Any) -> dict[str, Any]:
    """Return what a policy wrote, as a message."""
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


@pytest.fixture(scope="session")
def say() -> Callable[..., dict[str, Any]]:
    return says


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """Runs a coroutine; a test that takes long has failed."""

    def run_(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(work, 60))

    return run_
