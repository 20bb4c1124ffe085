"""A run that is stopped and resumed is the run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.helpers import write_config

UNTIMED = {"tokens_per_second", "memory/peak_mb", "eval_seconds", "seconds/sampling", "seconds/advantages"}


def truing(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "truing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False, **options)


def history(folder):
    import json

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNTIMED} for line in lines]


def trained(folder):
    (file,) = (folder / "model").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("adapter", [(), ("model.adapter.type=lora", "model.adapter.dropout=0.1")], ids=["full", "lora"])
def test_resume_is_bitwise(tmp_path, adapter):
    config = write_config(tmp_path, num_epochs=2, save_steps=5)
    unbroken = truing("train", config, *adapter, f"output.dir={tmp_path / 'unbroken'}")
    assert unbroken.returncode == 0, unbroken.stderr
    # the same run, cut after step 5: what came later is as if it had never been
    resumed = tmp_path / "resumed"
    subprocess.run(["cp", "-r", tmp_path / "unbroken", resumed], check=True)
    for checkpoint in sorted((resumed / "checkpoints").iterdir())[1:]:
        subprocess.run(["rm", "-r", checkpoint], check=True)
    subprocess.run(["rm", "-r", resumed / "model"], check=True)
    done = truing("train", config, *adapter, f"output.dir={resumed}", "--resume")
    assert done.returncode == 0, done.stderr
    assert "5 of 12 steps done" in done.stdout
    assert history(resumed) == history(tmp_path / "unbroken")
    expected = trained(tmp_path / "unbroken")
    found = trained(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path):
    config = write_config(tmp_path, save_steps=3)
    assert truing("train", config).returncode == 0
    weights = tmp_path / "run/checkpoints/step-00000006/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = truing("train", config, "--resume")
    assert done.returncode == 0, done.stderr
    assert "step-00000006 is damaged: weights.safetensors has" in done.stdout
    assert "3 of 6 steps done" in done.stdout


def test_a_checkpoint_beyond_the_run_is_refused(tmp_path):
    config = write_config(tmp_path, max_steps=4)
    assert truing("train", config).returncode == 0
    described = {name: (tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "environment.json")}
    done = truing("train", config, "trainer.max_steps=2", "--resume")
    assert done.returncode == 2
    assert "step-00000004 is of step 4, and this run has 2 steps; raise trainer.num_epochs or trainer.max_steps" in done.stderr
    assert described == {name: (tmp_path / "run" / name).read_bytes() for name in described}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, code):
    config = write_config(tmp_path, max_steps=100_000)
    command = [sys.executable, "-m", "truing", "train", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                break
        process.send_signal(number)
        started = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert time.monotonic() - started < 30
    assert "continue with --resume" in errors
    assert "Traceback" not in errors
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    steps = int(saved.name.removeprefix("step-"))
    done = truing("train", config, "--resume", f"trainer.max_steps={steps + 2}")
    assert done.returncode == 0, done.stderr
    assert f"{steps} of {steps + 2} steps done" in done.stdout
