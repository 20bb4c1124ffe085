"""Whole GRPO runs beside a real vLLM on a unix socket: they learn, they agree with it, and they outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.rollouts.real import ADAPTER, AGREEMENT, RealVllm, metrics, save_model, serve_settings, serving, truing, write_run

pytestmark = [pytest.mark.rollouts, pytest.mark.timeout(900)]


def begin(config: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "truing", "train", str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_steps(folder: Path, steps: int, run: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 400
    while run.poll() is None and time.monotonic() < until:
        if (folder / "out" / "metrics.jsonl").exists() and len(metrics(folder)) >= steps:
            return
        time.sleep(0.1)
    raise AssertionError(
        f"the run did not come to step {steps}: {run.stderr.read() if run.stderr and run.poll() is not None else ''}"
    )


def kill_server(server: RealVllm) -> None:
    """Kill vLLM as the kernel does when memory is short; its starter then ends by itself."""
    for child in psutil.Process(server.process.pid).children(recursive=True):
        child.kill()
    server.process.wait(60)


def reward_rose(folder: Path) -> bool:
    rewards = [line["reward"] for line in metrics(folder) if "reward" in line]
    return len(rewards) >= 20 and sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


@pytest.mark.parametrize("adapter, rate", [(None, 5e-3), (ADAPTER, 3e-2)], ids=["full", "lora"])
def test_grpo_learns(real_vllm: RealVllm, tmp_path: Path, adapter, rate):
    """Twenty-four steps, and in each of them the sampler's log-probabilities are the trainer's."""
    real_vllm.restore(tmp_path)
    config = write_run(tmp_path, real_vllm.model, real_vllm.rollout, model={"adapter": adapter}, trainer={"learning_rate": rate})
    done = truing("train", config, **real_vllm.environment)
    assert done.returncode == 0, done.stderr
    assert ("gets the adapter alone" in done.stderr + done.stdout) == (adapter is not None)
    assert reward_rose(tmp_path)
    assert max(line[AGREEMENT] for line in metrics(tmp_path) if AGREEMENT in line) < 1e-4


def test_a_run_goes_on_when_its_server_was_killed_and_started_again(tmp_path: Path):
    """The run waits for it, gives it the weights of the step, and ends as if nothing had been."""
    with serving(tmp_path / "server") as server:
        config = write_run(tmp_path, server.model, server.rollout, trainer={"max_steps": 40})
        run = begin(config, **server.environment)
        wait_for_steps(tmp_path, 8, run)
        kill_server(server)
        server.start()
        server.wait()
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert reward_rose(tmp_path) and [line["step"] for line in metrics(tmp_path) if AGREEMENT in line] == list(range(1, 41))
    assert max(line[AGREEMENT] for line in metrics(tmp_path) if AGREEMENT in line) < 1e-4


def test_a_run_that_starts_its_own_server_ends_it(tmp_path: Path):
    """Interrupted in the middle, so that it ends as a user's would."""
    rollout = {"mode": "spawn", "serve": serve_settings(tmp_path)}
    config = write_run(tmp_path, save_model(tmp_path / "model"), rollout, trainer={"max_steps": 500})
    run = begin(config)
    wait_for_steps(tmp_path, 2, run)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 143, said
    assert (tmp_path / "out" / "vllm-server.log").stat().st_size
    # one whose parent has ended may wait for the machine's first process to take note of its own end
    assert len(children) > 2 and all(ended(child) for child in children)


def test_a_run_that_is_stopped_while_its_server_starts_ends_both_at_once(tmp_path: Path):
    config = write_run(tmp_path, save_model(tmp_path / "model"), {"mode": "spawn", "serve": serve_settings(tmp_path)})
    run = begin(config)
    while not (tmp_path / "out" / "vllm-server.log").exists():
        assert run.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 143 and "stopped by SIGTERM before the first step" in said, said
    assert children and all(ended(child) for child in children)


def ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True
