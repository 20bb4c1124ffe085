"""A real `vllm serve`, started by `truing vllm-serve` on a unix socket, and runs beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.rollouts.vllm_program import vllm_executable
from truing import OpenContext
from truing.testing import FakeWeights, tiny_model, tiny_tokenizer
from truing_vllm import VllmRollout
from truing_vllm.address import Address, read_entries
from truing_vllm.opening import open_live

START_SECONDS = 400
ADAPTER = {"type": "lora", "r": 8}
AGREEMENT = "sampling/sampling_logp_difference/mean"
SHAPE = {"hidden_size": 64, "heads": 2, "kv_heads": 2, "layers": 2, "max_positions": 512}
"""Of the served model: vLLM's kernels for CPUs take heads of 32 numbers, and not of the quickstart's 24."""
WHOLE_PROMPTS = ["--no-enable-chunked-prefill"]
"""vLLM 0.32 takes back a seeded draw where it computed a part of a prompt only, which a CPU's generator cannot: the engine dies."""
REWARDS = """
def share_of_letters(completions, **columns):
    return [sum("a" <= char <= "z" for char in text) / max(1, len(text)) for text in completions]
"""


def save_model(folder: Path, **changes: Any) -> Path:
    """Write the served model, untrained: every byte is about as probable as any other."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, **{**SHAPE, **changes}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_run(folder: Path, served: Path, rollout: Mapping[str, Any], **changes: Any) -> Path:
    """Write the YAML of a GRPO run whose reward is the share of small letters, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": f"Write the letter, number {n}:"}) + "\n" for n in range(64)))
    config = {
        "method": {"name": "grpo", "importance_sampling_correction": "token_truncate"},
        "model": {"name": str(served), **changes.pop("model", {})},
        "data": {"path": "prompts.jsonl", "format": "text"},
        "rollout": {"name": "vllm", "num_generations": 8, "max_completion_length": 12, **rollout},
        "rewards": ["rewards.share_of_letters"],
        "trainer": {
            "batch_size": 8,
            "learning_rate": 5e-3,
            "max_steps": 24,
            "num_epochs": 100,
            "logging_steps": 1,
            **changes.pop("trainer", {}),
        },
        "output": {"dir": str(folder / "out")},
        **changes,
    }
    path = folder / "run.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(config, file)
    return path


def truing(*words: object, wait: float = 250, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    return subprocess.run(
        [sys.executable, "-m", "truing", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=wait,
        check=False,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@attrs.define
class RealVllm:
    """A server that is there, and what it serves."""

    folder: Path
    model: Path
    config: Path
    process: subprocess.Popen[bytes] = attrs.field(init=False)

    @property
    def weights_dir(self) -> Path:
        return self.folder / "weights"

    @property
    def address(self) -> Address:
        (entry,) = read_entries(self.folder / "out")
        return Address(url=entry.url, token=entry.token)

    @property
    def rollout(self) -> dict[str, Any]:
        """What a run's configuration says of it; the token comes by the environment."""
        return {"server": self.address.url, "weights_dir": str(self.weights_dir), "serve": {"dtype": "float32"}}

    @property
    def environment(self) -> dict[str, str]:
        token = self.address.token
        assert token is not None
        return {"TRUING_VLLM_TOKEN": token}

    def restore(self, folder: Path) -> None:
        """Give the server the weights that it was started with, over those that other tests left there."""
        model, tokenizer = AutoModelForCausalLM.from_pretrained(self.model), AutoTokenizer.from_pretrained(self.model)
        context = OpenContext(tokenizer=tokenizer, device=torch.device("cpu"), run_dir=folder, seed=0, models={"policy": model})
        address = self.address
        rollout = VllmRollout(server=address.url, token=address.token, weights_dir=self.weights_dir)
        live = open_live(rollout, context)
        live.update_weights(0, FakeWeights(model))
        live.close()

    def start(self) -> None:
        with (self.folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "truing", "vllm-serve", str(self.config)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=said,
                stderr=said,
            )

    def wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not read_entries(self.folder / "out"):
            assert self.process.poll() is None and time.monotonic() < until, (self.folder / "said").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def serve_settings(folder: Path) -> dict[str, Any]:
    """Return how the tiny model is served on a CPU, on a socket in this folder."""
    return {
        "executable": str(vllm_executable()),
        "uds": str(folder / "socket" / "v.sock"),
        "dtype": "float32",
        "max_model_len": 256,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 200_000_000,
        "args": WHOLE_PROMPTS,
    }


@contextmanager
def serving(folder: Path) -> Iterator[RealVllm]:
    """Serve the tiny model, with room for adapters, until the block ends."""
    model = save_model(folder / "model")
    rollout = {"weights_dir": str(folder / "weights"), "serve": serve_settings(folder)}
    server = RealVllm(folder, model, write_run(folder, model, rollout, model={"adapter": ADAPTER}))
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()
