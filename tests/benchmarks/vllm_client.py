"""What the vLLM client adds to a request, against a server that answers after a fixed time: `python -m tests.benchmarks.vllm_client`."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2 as httpx
import psutil
import torch

from tests.rollouts.fake_http import HttpThread, Reply
from truing import OpenContext, RolloutRequest, Sampling
from truing.testing import fake_context
from truing_vllm import ServeSettings, VllmRollout
from truing_vllm.live import LiveVllm
from truing_vllm.opening import open_live
from truing_vllm.wire import draw_params, generate_body

TOKENS = 64
SECONDS = 0.1
"""That the server takes for every completion, however many it is asked for."""


def serve(socket: str) -> None:
    """Answer as vLLM does, with the same tokens every time, until the process is killed."""
    tokens = list(range(5, 5 + TOKENS))
    spans = [{"version": "default", "start": 0, "end": TOKENS}]
    content = [{"token_id": token, "logprob": -1.25, "rank": 1, "top_logprobs": []} for token in tokens]
    choice = {
        "index": 0,
        "token_ids": tokens,
        "finish_reason": "length",
        "logprobs": {"content": content},
        "weight_versions": spans,
    }
    body = json.dumps({"request_id": "r", "choices": [choice]}).encode()

    async def answer(method: str, path: str, headers: dict[str, str], asked: object) -> Reply:
        if path == "/health":
            return Reply()
        await asyncio.sleep(SECONDS)
        return Reply(body)

    HttpThread(answer, socket)
    threading.Event().wait()


def bare(socket: str, concurrent: int, count: int) -> list[float]:
    """Return the seconds that each of `count` requests takes a plain httpx client, so many at a time."""
    params = draw_params(seed=1, limit=TOKENS, temperature=1.0)
    body = generate_body([5, 6, 7], params, None)
    seconds: list[float] = []

    async def run() -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=socket, limits=limits)
        left = iter(range(count))
        async with httpx.AsyncClient(base_url="http://vllm", transport=transport, trust_env=False, timeout=60) as client:

            async def worker() -> None:
                for _ in left:
                    started = time.perf_counter()
                    (await client.post("/inference/v1/generate", json=body)).json()
                    seconds.append(time.perf_counter() - started)

            await asyncio.gather(*(worker() for _ in range(concurrent)))

    asyncio.run(run())
    return seconds


def ours(live: LiveVllm, concurrent: int, count: int) -> tuple[list[float], int]:
    """Return the seconds that each of `count` requests takes through the client, and how many failed."""
    room, seconds, failed, done = threading.Semaphore(concurrent), [], 0, threading.Semaphore(0)

    def finished(started: float) -> Callable[[object], None]:
        def note(future: object) -> None:
            nonlocal failed
            seconds.append(time.perf_counter() - started)
            failed += future.exception() is not None or future.result()[0].finish_reason == "error"  # type: ignore[attr-defined]
            room.release()
            done.release()

        return note

    sampling = Sampling(max_completion_length=TOKENS)
    for number in range(count):
        room.acquire()
        request = RolloutRequest(id=str(number), prompt_ids=(5, 6, 7), seeds=(number,), sampling=sampling)
        started = time.perf_counter()
        live.submit(request).add_done_callback(finished(started))
    for _ in range(count):
        done.acquire()
    return seconds, failed


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return statistics.median(seconds) * 1e3, cuts[98] * 1e3


def opened(folder: Path, socket: str, concurrent: int) -> LiveVllm:
    """Return a client of the server at a socket."""
    context: OpenContext = fake_context(folder)
    rollout = VllmRollout(server=f"unix:{socket}", max_concurrency=concurrent, serve=ServeSettings(dtype="float32"))
    return open_live(rollout, context)


def main(count: int = 6400, many: int = 20_000) -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        socket = str(Path(name) / "v.sock")
        server = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.vllm_client", "--serve", socket])
        try:
            while not Path(socket).exists():
                time.sleep(0.05)
            live = opened(Path(name), socket, 1000)
            rounds = [(percentiles(bare(socket, 64, count // 4)), percentiles(ours(live, 64, count // 4)[0])) for _ in range(4)]
            for (median, high), (our_median, our_high) in rounds:
                print(f"64 at once: bare {median:.1f} ms, p99 {high:.1f}; ours {our_median:.1f} ms, p99 {our_high:.1f}")
            ours(live, 1000, 1000)
            before = psutil.Process().memory_info().rss
            started = time.perf_counter()
            seconds, failed = ours(live, 1000, many)
            grown = (psutil.Process().memory_info().rss - before) / 2**20
            wall = time.perf_counter() - started
            median, high = percentiles(seconds)
            print(
                f"1,000 at once, {many:,} in all: {failed} failed, {many / wall:.0f} a second, {median:.0f} ms, p99 {high:.0f}, +{grown:.1f} MB"
            )
            live.close()
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
    else:
        main()
