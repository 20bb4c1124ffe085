"""Two processes beside a fake server sample and learn what one does, whether each has all weights or a part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.rollouts.fake_vllm import FakeVllm
from tests.rollouts.real import ADAPTER, AGREEMENT, metrics, save_model, write_run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
STEPS = 4
ONE = ["-m", "truing", "train"]
TWO = [*ONE, "--num-processes", "2"]
SPREAD = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.rollouts.spread"]


def train(folder: Path, model: Path, command: list[str], adapter: dict | None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end on the same prompts as every other, beside a server that has the model."""
    batch = 4 if command == ONE else 2
    with FakeVllm(AutoModelForCausalLM.from_pretrained(model).eval(), folder / "out" / "vllm-weights") as server:
        rollout = {"server": server.url, "token": server.token, "serve": {"dtype": "float32"}, "timeout": 30.0}
        trainer = {"batch_size": batch, "max_steps": STEPS, "num_epochs": 1}
        config = write_run(folder, model, rollout, trainer=trainer, model={"adapter": adapter})
        return subprocess.run(
            [sys.executable, *command, str(config)], capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False
        )


def completions(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "out" / "completions.jsonl").read_text().splitlines()
    return [(line["sample"], line["completion"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("served") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("adapter, commands", [(None, (TWO, SPREAD)), (ADAPTER, (SPREAD,))], ids=["full", "lora"])
def test_two_processes_sample_and_learn_what_one_does(tmp_path, model, adapter, commands):
    ends = []
    for number, command in enumerate((ONE, *commands)):
        folder = tmp_path / str(number)
        done = train(folder, model, command, adapter)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line for line in metrics(folder) if AGREEMENT in line]
        assert len(lines) == STEPS and max(line[AGREEMENT] for line in lines) < 1e-4
        ends.append((completions(folder), lines))
    (sampled, alone), *others = ends
    for sampled_by_two, together in others:
        assert sampled_by_two == sampled
        for key in ("loss", "reward", "grad_norm"):
            assert [line[key] for line in together] == pytest.approx([line[key] for line in alone], rel=1e-3, abs=1e-6)
