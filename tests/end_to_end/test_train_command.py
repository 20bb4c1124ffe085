"""`truing train`, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.end_to_end.helpers import preferences, write_config, write_rows
from truing.cli import main
from truing.registry.first_party import FIRST_PARTY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def truing(*arguments, **options):
    command = [sys.executable, "-m", "truing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False, **options)


def in_process(*arguments):
    """Run the program without a new interpreter, which takes seconds to import torch."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_what_one_does(tmp_path):
    """24 pairs in steps of 10: the last step has 4, and ranks have unequal shares and numbers of micro-batches."""
    config = write_config(tmp_path, num_epochs=1)
    small = "trainer.max_tokens_per_batch=130"
    one = truing("train", config, small, "trainer.batch_size=10", f"output.dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    two = truing("train", config, small, "trainer.batch_size=5", f"output.dir={tmp_path / 'two'}", "--num-processes", 2)
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2
    first, second = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name, weight in first.items():
        # Adam divides by the root of a squared gradient, which turns a rounding of 1e-9 into one of the rate's size where it is 0
        torch.testing.assert_close(second[name], weight, rtol=0, atol=2e-4)


def test_a_rank_without_data_takes_part(tmp_path):
    config = write_config(tmp_path, max_steps=2, batch_size=1)
    write_rows(tmp_path / "pairs.jsonl", preferences(1))
    done = truing("train", config, "--num-processes", 2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run")[0] == pytest.approx(0.693147, abs=1e-5)


def test_a_signal_to_two_processes_saves_and_exits_130(tmp_path):
    config = write_config(tmp_path, max_steps=100_000)
    command = [sys.executable, "-m", "truing", "train", str(config), "--num-processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        until_said(process, "step 3/")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == 1


def test_a_request_to_save_before_the_first_step_is_answered_after_it(tmp_path):
    """It comes while the program imports what it needs, and again when the model is loaded and the data read."""
    config = write_config(tmp_path, max_steps=3)
    command = [sys.executable, "-m", "truing", "train", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        until_held(process)
        process.send_signal(signal.SIGUSR1)
        until_said(process, "forward:")
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert saved[0] == "step-00000001" and saved[-1] == "step-00000003"


def test_requests_to_save_reach_two_processes_through_their_launcher(tmp_path):
    """One comes before they are started, and one while they train."""
    config = write_config(tmp_path, max_steps=100_000)
    command = [sys.executable, "-m", "truing", "train", str(config), "--num-processes", "2"]
    checkpoints = tmp_path / "run/checkpoints"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        until_held(process)
        process.send_signal(signal.SIGUSR1)
        until_said(process, "step 3/")
        process.send_signal(signal.SIGUSR1)
        for _ in process.stdout:
            if len(list(checkpoints.glob("step-*"))) == 2:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 143, errors
    first, second, _ = sorted(path.name for path in checkpoints.iterdir())
    # a step's line comes before its boundary, so that the request may be met at the very step that was waited for
    assert first == "step-00000001" and second >= "step-00000003"


def until_said(process, beginning):
    """Return when a program has printed a line that begins so, or has ended."""
    next((line for line in process.stdout if line.startswith(beginning)), None)


def until_held(process):
    """Return when a program holds SIGUSR1 back."""
    while not blocked(process.pid) >> (signal.SIGUSR1 - 1) & 1:
        assert process.poll() is None
        time.sleep(0.01)


def blocked(pid):
    """Return the mask of the signals that a process blocks."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:"))


def test_two_processes_say_once_what_is_wrong(tmp_path):
    """Only the first rank looks into the directory; the other would blame the connection that is closed to it."""
    config = write_config(tmp_path)
    (tmp_path / "run/model").mkdir(parents=True)
    done = truing("train", config, "--num-processes", 2)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if "holds another run" in line][:1]


def test_an_early_interrupt_of_two_processes_ends_both(tmp_path):
    """Ctrl-C goes to the launcher and its ranks, while these import what they need."""
    command = [sys.executable, "-m", "truing", "train", str(write_config(tmp_path)), "--num-processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True) as process:
        while len(ranks_of(process.pid)) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "death signal" not in errors


def test_a_second_signal_to_the_launcher_ends_processes_that_hang(tmp_path):
    command = [sys.executable, "-m", "truing", "train", str(write_config(tmp_path, max_steps=100_000)), "--num-processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        until_said(process, "step 3/")
        ranks = [int(pid) for pid in ranks_of(process.pid)]
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert all(not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in ranks)


def ranks_of(pid):
    return (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()


def test_plain_lines_when_piped(tmp_path):
    done = truing("train", write_config(tmp_path, max_steps=2))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step")] == ["1/2", "2/2"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data.path=absent.jsonl"], 2, "data.path: no file"),
        (["model.name=./absent"], 2, "absent"),
        (["method=absent"], 3, "pip install truing-absent"),
        (["trainer.learning_rat=1"], 2, "did you mean 'learning_rate'"),
        (["model.adapter={type: lora, target_modules: [q_prj]}"], 2, "its linear modules are"),
        (["data.format=text"], 2, "text"),
        (["trainer.max_length=2"], 2, "longer than max_length 2"),
        (["--resume=absent"], 2, "absent is no checkpoint"),
        (["trainer.max_length=100000"], 2, "the model was made for 512 tokens"),
    ],
)
def test_mistakes_are_one_clear_message(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.setitem(FIRST_PARTY["loss"], "absent", "truing-absent")
    done = in_process("train", write_config(tmp_path), *arguments)
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/model").exists()


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in in_process("--debug", "train", write_config(tmp_path), "data.path=absent.jsonl").stderr


def test_messages_without_a_chat_template(tmp_path):
    config = write_config(tmp_path)
    (tmp_path / "model/chat_template.jinja").unlink()
    turn = [{"role": "user", "content": "hi"}]
    row = {
        "prompt": turn,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    write_rows(tmp_path / "pairs.jsonl", [row])
    done = in_process("train", config)
    assert done.exit_code == 2
    assert "model.chat_template" in done.stderr


def test_a_second_run_into_the_same_directory(tmp_path):
    config = write_config(tmp_path, max_steps=1)
    assert in_process("train", config).exit_code == 0
    again = in_process("train", config)
    assert again.exit_code == 2
    assert "holds another run; continue it with --resume" in again.stderr


def test_steps_with_a_gradient_that_is_not_finite_leave_the_weights_alone(tmp_path):
    config = write_config(tmp_path, max_steps=50, max_skipped_steps=3)
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    done = in_process("train", config)
    assert done.exit_code == 1
    assert "step 1 left out: not finite: loss, log-probabilities, reference's log-probabilities, gradient (samples " in done.stdout
    assert "3 steps in a row" in done.stderr
    assert "NaN" in (tmp_path / "run/metrics.jsonl").read_text()
