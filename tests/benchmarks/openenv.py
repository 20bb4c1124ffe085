"""Round trips per second to an OpenEnv server: our environments against a bare websockets client, interleaved, on loopback.

`python -m tests.benchmarks.openenv` asks the fake server of the tests, and the real one where `make test-rollouts` has built it,
each in a process of its own. A round trip is a step; a session is a connection, and plays on for the whole measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from websockets.asyncio.client import connect

from tests.rollouts.openenv_program import free_port, is_built, served
from truing_openenv import OpenEnvRollout
from truing_openenv.environments import OpenEnvironments

ROOT = Path(__file__).resolve().parents[2]
TASK = {"seed": 1, "answer": "40"}
SECONDS = 60.0
"""Longest wait for an answer."""


@attrs.frozen
class Measured:
    """One measurement."""

    rate: float
    """Round trips per second of wall time."""
    cpu: float
    """CPU seconds of the client per 1,000 round trips."""


async def bare(url: str, sessions: int, trips: int) -> Measured:
    """Measure a client that sends, waits and parses, and does no more."""
    connections = [await connect(f"{url.replace('http', 'ws')}/ws", proxy=None) for _ in range(sessions)]

    async def play(number: int) -> None:
        connection = connections[number]
        for _ in range(trips):
            await connection.send(json.dumps({"type": "step", "data": {"guess": 0}}))
            assert json.loads(await connection.recv())["data"]["observation"]["hint"] == "higher"

    try:
        for connection in connections:
            await connection.send(json.dumps({"type": "reset", "data": TASK}))
            await connection.recv()
        return await _measured(play, sessions, trips)
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


async def ours(environments: OpenEnvironments, sessions: int, trips: int) -> Measured:
    """Measure environments as a run's driver uses them: a policy's text goes in, messages come out."""
    episodes = [environments.new() for _ in range(sessions)]

    async def play(number: int) -> None:
        for _ in range(trips):
            found = await episodes[number].step({"role": "assistant", "content": "0"})
            assert found.messages[0]["content"] == "higher"

    try:
        await asyncio.gather(*(episode.reset(TASK, 1) for episode in episodes))
        return await _measured(play, sessions, trips)
    finally:
        await asyncio.gather(*(episode.close() for episode in episodes))


async def _measured(play: Callable[[int], Awaitable[None]], sessions: int, trips: int) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(play, range(sessions)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(sessions * trips / wall, cpu * 1000 / (sessions * trips))


def compare(url: str, sessions: int, trips: int, rounds: int) -> tuple[list[Measured], list[Measured]]:
    """Return what each side measured, ours first, by turns; a first round of each warms up."""
    environments = OpenEnvironments.open(OpenEnvRollout(url=url, max_sessions=sessions, reset_columns=("answer",)), SECONDS)
    assert environments.capacity == sessions, f"{url} allows {environments.capacity} sessions"
    try:
        found = [
            (asyncio.run(ours(environments, sessions, trips)), asyncio.run(bare(url, sessions, trips))) for _ in range(rounds + 1)
        ]
    finally:
        environments.close()
    first, second = zip(*found[1:], strict=True)
    return list(first), list(second)


def line(name: str, ours: list[Measured], bare: list[Measured]) -> str:
    """Return the medians of both sides, and the median ratio of rates in a round."""
    rates = [statistics.median(one.rate for one in side) for side in (ours, bare)]
    cpu = [statistics.median(one.cpu for one in side) for side in (ours, bare)]
    ratio = statistics.median(mine.rate / other.rate for mine, other in zip(ours, bare, strict=True))
    return (
        f"{name}: ours {rates[0]:,.0f} round trips/s ({cpu[0]:.2f} CPU s per 1,000), bare {rates[1]:,.0f} ({cpu[1]:.2f}); "
        f"ratio {ratio:.2f}"
    )


@contextmanager
def fake_server() -> Iterator[str]:
    """Yield the address of the fake server."""
    port = free_port()
    command = [sys.executable, "-m", "tests.rollouts.fake_openenv", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the fake server did not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--trips", type=int, default=100, help="of each session, in each round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with fake_server() as url:
        print(line("fake server", *compare(url, options.sessions, options.trips, options.rounds)), flush=True)
    if is_built():
        log = Path(tempfile.mkdtemp()) / "server.log"
        with served(ROOT / "examples/openenv/guess_server.py", log) as (url, _):
            print(line("openenv 0.10.0", *compare(url, options.sessions, options.trips, options.rounds)))


if __name__ == "__main__":
    main()
