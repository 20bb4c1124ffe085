"""A run that an error ends keeps what it can: the save that is under way is finished, and good weights are saved first."""

from __future__ import annotations

import errno
import time

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.end_to_end.helpers import write_config
from truing.cli import main
from truing.errors import PluginError
from truing.train import loop, step
from truing.train.checkpoint import store, verify
from truing.train.run_dir import RunDir


def train(config, *arguments):
    return CliRunner().invoke(main, ["train", str(config), *map(str, arguments)])


def fail_at_the_third_step(monkeypatch, error, *, writing):
    """Let the third step raise an error while the checkpoint of the second is written; `writing` takes the place of one file."""
    real_step, real_write = loop.train_step, store.write_file

    def train_step(run, trees):
        if run.state.step == 2:
            raise error
        return real_step(run, trees)

    def write_file(path, *rest):
        if path.name == "state.json":
            writing()
        return real_write(path, *rest)

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(store, "write_file", write_file)


def test_a_checkpoint_that_is_being_written_when_a_step_raises_is_finished(tmp_path, monkeypatch):
    fail_at_the_third_step(monkeypatch, PluginError("as a method may"), writing=lambda: time.sleep(1))
    done = train(write_config(tmp_path, max_steps=4, save_steps=2))
    assert done.exit_code == 3 and "as a method may" in done.stderr
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert saved.name == "step-00000002"
    verify(saved)
    assert RunDir(tmp_path / "run").owner() is None


def test_a_checkpoint_that_cannot_be_written_then_is_told_of_beside_the_error(tmp_path, monkeypatch):
    def full():
        time.sleep(0.5)
        raise OSError(errno.ENOSPC, "No space left on device")

    fail_at_the_third_step(monkeypatch, PluginError("as a method may"), writing=full)
    done = train(write_config(tmp_path, max_steps=4, save_steps=2))
    assert done.exit_code == 3 and "as a method may" in done.stderr
    assert "step-00000002 cannot be written: No space left on device" in done.stdout


def test_a_second_signal_does_not_wait_for_it(tmp_path, monkeypatch):
    fail_at_the_third_step(monkeypatch, KeyboardInterrupt(), writing=lambda: time.sleep(2))
    done = train(write_config(tmp_path, max_steps=4, save_steps=2))
    assert done.exit_code == 130
    saved = tmp_path / "run/checkpoints/step-00000002"
    assert not saved.exists()
    deadline = time.monotonic() + 60
    while not saved.exists():  # by the thread, which would else outlive its folder
        assert time.monotonic() < deadline
        time.sleep(0.05)


def leave_out(monkeypatch, *steps):
    """Let steps, counted from 1, be ones that have a problem."""
    monkeypatch.setattr(step, "judge", lambda run, finite, norm: ["gradient"] if run.state.step + 1 in steps else [])


def test_good_weights_are_saved_before_too_many_steps_that_are_left_out_end_the_run(tmp_path, monkeypatch):
    config = write_config(tmp_path, max_steps=6, max_skipped_steps=2, logging_steps=10)
    with monkeypatch.context() as patch:
        leave_out(patch, 3, 4)
        done = train(config)
    assert done.exit_code == 1
    assert "2 steps in a row were left out" in done.stderr and "The weights are those of step 2." in done.stderr
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert saved.name == "step-00000004" and f"the run is saved as {saved} before it ends" in done.stdout.replace("\n", " ")
    assert '"step": 4' in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]
    short = train(write_config(tmp_path, max_steps=6, max_skipped_steps=2, save_steps=2), f"output.dir={tmp_path / 'unbroken'}")
    assert short.exit_code == 0
    good = load_file(tmp_path / "unbroken/checkpoints/step-00000002/weights.safetensors")
    weights = load_file(saved / "weights.safetensors")
    assert all(torch.equal(weights[name], good[name]) for name in good)
    assert "4 of 6 steps done" in train(config, "--resume").stdout


@pytest.mark.parametrize("steps", [(1, 2), (2, 3)])
def test_nothing_is_saved_where_nothing_is_new_or_whole(tmp_path, monkeypatch, steps):
    """No step was good, or the optimiser's state is damaged."""
    config = write_config(tmp_path, max_steps=6, max_skipped_steps=2)
    leave_out(monkeypatch, *steps)
    real = loop.train_step

    def train_step(run, trees):
        if run.state.step == 2:
            next(iter(run.state.optimizer.state.values()), {"exp_avg": torch.zeros(1)})["exp_avg"].fill_(float("nan"))
        return real(run, trees)

    monkeypatch.setattr(loop, "train_step", train_step)
    done = train(config)
    assert done.exit_code == 1 and "2 steps in a row were left out" in done.stderr
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))
    assert ("the run is not saved before it ends" in done.stdout) == (steps == (2, 3))
