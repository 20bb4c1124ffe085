"""A launcher's second attempt goes on with what its first one began, and with nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta

import pytest
from click.testing import CliRunner

from tests.end_to_end.helpers import write_config
from tests.end_to_end.test_ranks import ENVIRONMENT
from truing.cli import main
from truing.config import load_config
from truing.registry import Registry
from truing.train import restarts, setup
from truing.train.restarts import resumed_from
from truing.train.run_dir import RunDir


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """Return a function that makes this process the one that a launcher has started so often before."""
    monkeypatch.setattr(setup, "join_restarted", lambda timeout: None)  # there are no others

    def become(launch, number):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # what it is where nobody gives one
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        file = tmp_path / launch / f"attempt_{number}/0/error.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    return become


def train(config, *arguments):
    return CliRunner().invoke(main, ["train", str(config), *map(str, arguments)])


def test_a_second_attempt_leaves_the_run_of_another_launch_alone(tmp_path, attempt):
    config = write_config(tmp_path, max_steps=2)
    attempt("one", 0)
    assert train(config).exit_code == 0
    metrics = (tmp_path / "run/metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints")
    for number in (0, 1):
        attempt("two", number)
        refused = train(config)
        assert refused.exit_code == 2
        assert "holds another run; continue it with --resume" in refused.stderr
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == metrics
    attempt("one", 1)
    again = train(config)
    assert again.exit_code == 0, again.output
    assert "no checkpoint in" in again.stdout


def test_a_second_attempt_goes_on_from_the_newest_checkpoint_and_not_the_one_that_the_first_began_with(tmp_path, attempt):
    config = write_config(tmp_path, max_steps=4, save_steps=2)
    assert train(config).exit_code == 0
    first = tmp_path / "run/checkpoints/step-00000002"
    attempt("one", 0)
    assert "2 of 4 steps done" in train(config, f"--resume={first}").stdout
    attempt("one", 1)
    assert "4 of 4 steps done" in train(config, f"--resume={first}").stdout
    shutil.rmtree(first)  # as save_total_limit does
    done = train(config, f"--resume={first}")
    assert done.exit_code == 0, done.output
    assert "4 of 4 steps done" in done.stdout
    attempt("two", 1)  # of a launch whose first attempt did not come so far
    assert "cannot be resumed" in train(config, f"--resume={first}").stderr


def test_a_second_attempt_goes_on_from_a_checkpoint_of_elsewhere_and_not_from_one_of_another_course(tmp_path, attempt):
    config = write_config(tmp_path, max_steps=4, save_steps=2)
    assert train(config).exit_code == 0
    elsewhere = shutil.copytree(tmp_path / "run/checkpoints/step-00000002", tmp_path / "step-00000002")
    assert train(config, "trainer.learning_rate=0.1", f"output.dir={tmp_path / 'other'}").exit_code == 0
    shutil.copytree(tmp_path / "other", tmp_path / "run", dirs_exist_ok=True)  # another course, of the same steps
    attempt("one", 0)
    assert "2 of 4 steps done" in train(config, f"--resume={elsewhere}").stdout
    weights = "checkpoints/step-00000002/weights.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (elsewhere / "weights.safetensors").read_bytes()
    assert (tmp_path / "run" / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


def test_a_new_run_has_no_completions_of_a_start_that_failed_in_its_first_step(tmp_path):
    config = write_config(tmp_path, max_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/completions.jsonl").write_text('{"step": 0}\n')
    assert train(config).exit_code == 0
    assert (tmp_path / "run/completions.jsonl").read_text() == ""


def test_what_a_second_attempt_goes_on_from(tmp_path, attempt):
    run_dir, asked = RunDir(tmp_path / "run"), tmp_path / "elsewhere/checkpoints/step-00000002"
    run_dir.path.mkdir()
    attempt("one", 1)
    assert [resumed_from(run_dir, resume) for resume in (False, True, asked)] == [False, True, asked]
    run_dir.begin(str(tmp_path / "one"))
    assert [resumed_from(run_dir, resume) for resume in (False, True, asked)] == [True, True, asked]
    (run_dir.checkpoints / "step-00000003").mkdir(parents=True)
    assert [resumed_from(run_dir, resume) for resume in (False, True, asked)] == [True, True, True]
    attempt("one", 0)
    assert resumed_from(run_dir, False) is False
    run_dir.begin(None)
    attempt("one", 1)
    assert resumed_from(run_dir, False) is False


@pytest.mark.parametrize(("save_timeout", "minutes"), [(1800, 40), (7200, 130), (60, 30)])
def test_processes_wait_longer_for_each_other_than_the_first_one_for_a_save(tmp_path, attempt, monkeypatch, save_timeout, minutes):
    """NCCL would wait for ten minutes and gloo for thirty, in a restarted group too."""
    attempt("one", 1)
    monkeypatch.setattr(setup, "join_restarted", restarts.join_restarted)
    made = []
    monkeypatch.setattr(restarts, "rendezvous", lambda url: iter([(None, 0, 1)]))
    monkeypatch.setattr(restarts, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(restarts.distributed, "init_process_group", lambda **how: made.append(how["timeout"]))
    config = load_config(write_config(tmp_path, save_timeout=save_timeout), registry=Registry.load())
    made.append(setup._accelerator(config).init_handler.to_kwargs().get("timeout", timedelta(minutes=30)))
    assert made == [timedelta(minutes=minutes)] * 2


@pytest.mark.slow
def test_restarts_do_not_take_over_another_run(tmp_path):
    config = write_config(tmp_path, max_steps=2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    command = [sys.executable, "-m", "truing", "train", str(config), "--num-processes", "2", "--max-restarts", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    assert "holds another run" in done.stderr
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"step": 1}\n'
