"""Several processes: one that is lost ends the others or, with restarts, costs nothing; shards are saved and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.end_to_end.helpers import write_config
from tests.end_to_end.steps import prepare_folder
from tests.end_to_end.test_resume import history, trained
from truing.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(config, output, *options):
    command = [sys.executable, "-m", "truing", "train", str(config), f"output.dir={output}", "--num-processes", "2", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def kill_rank(process, rank, *, at_step):
    """Kill one process of a launcher without notice when the first rank says that it has come so far."""
    for line in process.stdout:
        if line.startswith(f"step {at_step}/"):
            break
    (lost,) = [child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK") == str(rank)]
    lost.kill()


def test_a_process_that_is_killed_ends_the_others_and_is_named(tmp_path):
    config = write_config(tmp_path, batch_size=2, max_steps=100_000)
    with start(config, tmp_path / "run") as process:
        kill_rank(process, 1, at_step=5)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "(rank 1) was killed by SIGKILL, and the others were stopped; continue with --resume" in errors
    assert "Traceback" not in errors and "internal error" not in errors
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_restarted_run_is_bitwise_the_unbroken_one(tmp_path):
    config = write_config(tmp_path, batch_size=2, max_steps=40, save_steps=4)
    with start(config, tmp_path / "unbroken") as unbroken:
        _, errors = unbroken.communicate(timeout=100)
    assert unbroken.returncode == 0, errors
    with start(config, tmp_path / "restarted", "--max-restarts", "1") as restarted:
        kill_rank(restarted, 1, at_step=11)
        output, errors = restarted.communicate(timeout=100)
    assert restarted.returncode == 0, errors
    assert "of 40 steps done" in output
    assert history(tmp_path / "restarted") == history(tmp_path / "unbroken")
    found, expected = trained(tmp_path / "restarted"), trained(tmp_path / "unbroken")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", ["dpo", "scored"])
def test_weights_that_are_spread_over_ranks_are_saved_and_resumed_bitwise(tmp_path, method):
    prepare_folder(tmp_path)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.end_to_end.sharded"]
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path), method], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["resumed"] == found["unbroken"]
    assert {"weights-0.safetensors", "weights-1.safetensors", "optimizer-1.safetensors", "random-1.safetensors"} <= {
        *found["files"]
    }
    halves = [load_file(tmp_path / f"one/checkpoints/step-00000002/weights-{rank}.safetensors") for rank in (0, 1)]
    whole = load_file(tmp_path / "model/model.safetensors")
    name = next(name for name in halves[0] if name.endswith("mlp.c_fc.weight"))
    original = next(tensor for key, tensor in whole.items() if name.endswith(key))
    assert halves[0][name].shape[0] + halves[1][name].shape[0] == original.shape[0]
    written = load_file(tmp_path / "one/model/model.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == {name: tensor.shape for name, tensor in whole.items()}
    if method == "scored":
        head = load_file(tmp_path / "one/model/value_head.safetensors")["weight"]
        assert head.shape == (1, 32) and head.any()


REWARD = """
def vowels(completions, **columns):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]
"""


def test_two_processes_sample_and_learn_what_one_does(tmp_path):
    config = write_config(tmp_path, batch_size=4, max_steps=4)
    (tmp_path / "rewards.py").write_text(REWARD)
    online = (
        "method={name: grpo, beta: 0.1, num_minibatches: 2, num_iterations: 1}",
        "data.format=text",
        "rewards=rewards.vowels",
        "rollout={num_generations: 3, max_completion_length: 5}",
    )
    ends = []
    for name, processes, batch in (("one", 1, 4), ("two", 2, 2)):
        command = [sys.executable, "-m", "truing", "train", str(config), f"output.dir={tmp_path / name}", *online]
        command += [f"trainer.batch_size={batch}", *(["--num-processes", "2"] if processes == 2 else [])]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=250, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        completions = (tmp_path / name / "completions.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in completions]
        ends.append(([(line["sample"], line["completion"]) for line in lines], history(tmp_path / name)))
    (sampled, alone), (sampled_by_two, together) = ends
    assert sampled_by_two == sampled
    for name in ("loss", "reward", "kl", "grad_norm"):
        assert [line[name] for line in together] == pytest.approx([line[name] for line in alone], rel=1e-4, abs=1e-6)


def test_processes_are_given_the_time_of_a_save_to_end(tmp_path, monkeypatch):
    """Torch's launcher kills them 30 seconds after a signal if it is not told otherwise."""
    told = []
    for name in ("_handle_stops", "_forward_requests_to_save"):
        monkeypatch.setattr(f"truing.cli.train.{name}", lambda: None)
    monkeypatch.setattr("accelerate.commands.launch.launch_command", told.append)
    config = write_config(tmp_path, save_timeout=40.0)
    assert CliRunner().invoke(main, ["train", str(config), "--num-processes", "2"]).exit_code == 0
    assert told[0].shutdown_timeout == 40 + 300
    assert told[0].signals_to_handle == "SIGHUP,SIGQUIT"
