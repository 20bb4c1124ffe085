"""What the vLLM client adds to a request, beside a bare one, against a server that answers after a fixed time."""

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
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import torch

from tests.rollouts.fake_http import HttpThread, Reply
from tests.rollouts.real import serving
from truing import RolloutRequest, Sampling
from truing.testing import fake_context
from truing_vllm import VllmRollout
from truing_vllm.address import Address
from truing_vllm.live import LiveVllm
from truing_vllm.opening import open_live
from truing_vllm.wire import generate_body, sampling_params

TOKENS = 64
SECONDS = 0.5
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


class Bare:
    """Plain httpx calls in an event loop of their own."""

    def __init__(self, address: Address) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=address.socket, limits=limits)
        headers = {"authorization": f"Bearer {address.token}"}
        self.client = httpx.AsyncClient(
            base_url=address.base_url, headers=headers, transport=transport, trust_env=False, timeout=300
        )
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def submit(self, request: RolloutRequest) -> Future[bool]:
        """Ask the same as the client does; the future is whether there was an answer."""
        return asyncio.run_coroutine_threadsafe(self._post(request), self.loop)

    async def _post(self, request: RolloutRequest) -> bool:
        body = generate_body(request.prompt_ids, sampling_params(request, request.seeds[0], [2]), None)
        response = await self.client.post("/inference/v1/generate", json=body)
        return bool(response.json()["choices"])


def drive(submit: Callable[[RolloutRequest], Future[Any]], concurrent: int, count: int) -> tuple[list[float], int]:
    """Return the seconds that each of `count` requests takes, so many at a time, and how many failed."""
    room, done = threading.Semaphore(concurrent), threading.Semaphore(0)
    seconds: list[float] = []
    failed = 0

    def noting(started: float) -> Callable[[Future[Any]], None]:
        def note(future: Future[Any]) -> None:
            nonlocal failed
            seconds.append(time.perf_counter() - started)
            result = None if future.exception() else future.result()
            failed += not result or (isinstance(result, tuple) and result[0].finish_reason == "error")
            room.release()
            done.release()

        return note

    sampling = Sampling(max_completion_length=TOKENS)
    for number in range(count):
        room.acquire()
        request = RolloutRequest(id=str(number), prompt_ids=(5, 6, 7), seeds=(number,), sampling=sampling)
        started = time.perf_counter()
        submit(request).add_done_callback(noting(started))
    for _ in range(count):
        done.acquire()
    return seconds, failed


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return statistics.median(seconds) * 1e3, cuts[98] * 1e3


def opened(folder: Path, address: Address, concurrent: int) -> LiveVllm:
    """Return a client of a server."""
    rollout = VllmRollout(server=address.url, token=address.token, max_concurrency=concurrent)
    return open_live(rollout, fake_context(folder))


def beside_the_real_one(rounds: int = 5, count: int = 256) -> None:
    """Print how long 64 sequences at once take, asked by a bare client and by ours, one after the other."""
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as server:
        bare, live = Bare(server.address), opened(Path(name) / "run", server.address, 64)
        drive(bare.submit, 64, count)
        ratios = []
        for _ in range(rounds):
            walls = []
            for submit in (bare.submit, live.submit):
                started = time.perf_counter()
                drive(submit, 64, count)
                walls.append(time.perf_counter() - started)
            ratios.append(walls[1] / walls[0])
            print(f"64 sequences at once: bare {walls[0]:.2f} s, ours {walls[1]:.2f} s", flush=True)
        print(f"overhead, median of {rounds}: {statistics.median(ratios) - 1:+.1%}")
        live.close()


def main(rounds: int = 4, count: int = 1600, many: int = 20_000) -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        socket = str(Path(name) / "v.sock")
        server = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.vllm_client", "--serve", socket])
        try:
            while not Path(socket).exists():
                time.sleep(0.05)
            address = Address(url=f"unix:{socket}", token="t")
            bare, live = Bare(address), opened(Path(name), address, 1000)
            for _ in range(rounds):
                (median, high), (our_median, our_high) = (percentiles(drive(it.submit, 64, count)[0]) for it in (bare, live))
                print(f"64 at once: bare {median:.0f} ms, p99 {high:.0f}; ours {our_median:.0f} ms, p99 {our_high:.0f}", flush=True)
            drive(live.submit, 1000, 2000)
            before, started = psutil.Process().memory_info().rss, time.perf_counter()
            seconds, failed = drive(live.submit, 1000, many)
            wall, grown = time.perf_counter() - started, (psutil.Process().memory_info().rss - before) / 2**20
            median, high = percentiles(seconds)
            print(f"1,000 at once, {many:,} in all: {failed} failed, {many / wall:.0f} a second, +{grown:.1f} MB")
            print(f"  {median:.0f} ms, p99 {high:.0f}")
            live.close()
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve")
    parser.add_argument("--real", action="store_true")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
    elif given.real:
        beside_the_real_one()
    else:
        main()
