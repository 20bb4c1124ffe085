"""Checkpoints that somebody made to do harm: sealed as well as ours, for a seal is no signature."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import attrs
import pytest
import torch

from tests.end_to_end.steps import make_run, prepare_folder
from truing.errors import ConfigError
from truing.train.checkpoint import MANIFEST, read_manifest
from truing.train.checkpoint.files import Seal, seal_of
from truing.train.saving import Saver, _take_over
from truing.train.step import train_step


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malicious")
    prepare_folder(folder)
    run = make_run(folder, "run", dtype="float32", max_steps=3)
    run.wrapped.train()
    train_step(run)
    run.state.step = 1
    path = Saver(run).save(wait=True)
    assert _take_over(run, path) is None
    return run, path


@pytest.fixture
def checkpoint(good, tmp_path):
    return Path(shutil.copytree(good[1], tmp_path / "outer/checkpoints" / good[1].name))


def reseal(path, **changes):
    """Write a manifest that fits the folder as it is, with some fields changed."""
    plain = [file for file in path.iterdir() if file.name != MANIFEST and file.is_file()]
    files = {file.name: seal_of(file) for file in plain}
    manifest = attrs.evolve(read_manifest(path), **{"files": files, **changes})
    (path / MANIFEST).write_bytes(manifest.render())


def refused(good, path):
    run, _ = good
    before = {name: weight.clone() for name, weight in run.state.weights().items()}
    problem = _take_over(run, path)
    assert problem is not None
    assert all(weight.equal(before[name]) for name, weight in run.state.weights().items())
    return problem


def bomb(tmp_path):
    return pickle.dumps(Bomb(tmp_path / "mark"))


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path):
    yield
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["optimizer.bin", "rng_state.pth", "pytorch_model.bin", "scheduler.pt", "state.pkl", "hook.py"])
def test_files_that_may_run_code_are_refused_sealed_or_not(good, checkpoint, tmp_path, name):
    (checkpoint / name).write_bytes(bomb(tmp_path))
    assert f"{name} is not a file that manifest.json names" in refused(good, checkpoint)
    reseal(checkpoint)
    assert "a checkpoint has files of its own folder, .safetensors and .json only" in refused(good, checkpoint)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random-0.safetensors", "state.json"])
def test_a_pickle_under_a_good_name_is_no_pickle_to_us(good, checkpoint, tmp_path, name):
    (checkpoint / name).write_bytes(bomb(tmp_path))
    reseal(checkpoint)
    assert "its state cannot be read" in refused(good, checkpoint)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hostname", "..", "a/b.json", "weights.safetensors/../../x.json"])
def test_names_that_lead_out_of_the_folder_are_refused(good, checkpoint, name):
    (checkpoint.parent / "secret.json").write_text("{}")
    reseal(checkpoint, files={**read_manifest(checkpoint).files, name: Seal(2, "0" * 32)})
    assert f"manifest.json names {name!r}" in refused(good, checkpoint)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", MANIFEST])
@pytest.mark.parametrize("target", ["elsewhere", "/dev/zero", "fifo", "folder"])
def test_what_is_no_plain_file_is_not_opened(good, checkpoint, tmp_path, name, target):
    file = checkpoint / name
    data = file.read_bytes()
    file.unlink()
    if target == "fifo":
        os.mkfifo(file)
    elif target == "folder":
        file.mkdir()
    else:
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / target)
    assert f"{name} is not a plain file" in refused(good, checkpoint)


@pytest.mark.parametrize("length", [2**63, 2**40, 200_000_000])
def test_an_absurd_header_takes_no_memory(good, checkpoint, length):
    file = checkpoint / "weights.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    reseal(checkpoint)
    assert "its state cannot be read" in refused(good, checkpoint)


def test_an_absurd_shape_takes_no_memory(good, checkpoint):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (checkpoint / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    reseal(checkpoint)
    assert "its state cannot be read" in refused(good, checkpoint)


def test_a_manifest_of_absurd_size_is_not_read(good, checkpoint):
    with (checkpoint / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    assert "and at most 16,777,216 are read" in refused(good, checkpoint)


def test_a_state_of_absurd_size_is_not_read(good, checkpoint):
    with (checkpoint / "state.json").open("ab") as file:
        file.truncate(1 << 31)
    reseal(checkpoint, files={**read_manifest(checkpoint).files, "state.json": Seal(1 << 31, "0" * 32)})
    assert "state.json has 2,147,483,648 bytes, and at most 1,073,741,824 are read" in refused(good, checkpoint)


def test_deep_nesting_does_not_exhaust_the_stack(good, checkpoint):
    (checkpoint / MANIFEST).write_text("[" * 100_000 + "]" * 100_000)
    assert "manifest.json cannot be read" in refused(good, checkpoint)
    reseal_with(checkpoint, "state.json", "[" * 100_000 + "]" * 100_000)
    assert "its state cannot be read" in refused(good, checkpoint)


def reseal_with(checkpoint, name, text):
    shutil.copy(checkpoint.parents[2] / "manifest-before", checkpoint / MANIFEST)
    (checkpoint / name).write_text(text)
    reseal(checkpoint)


@pytest.fixture(autouse=True)
def manifest_before(checkpoint, tmp_path):
    shutil.copy(checkpoint / MANIFEST, tmp_path / "manifest-before")


@pytest.mark.parametrize(
    "change",
    [
        {"step": "../../../etc"},
        {"step": 2},
        {"random": [{"python": ["__import__('os').mkdir('mark')", [], None], "numpy": ["MT19937", 0, 0, 0.0]}]},
        {"random": []},
        {"source": None, "random": [{"python": [3, [1, 2], None], "numpy": ["MT19937", 0, 0, 0.0]}]},
        {"scheduler": "now"},
        {"loss_state": 3},
    ],
)
def test_a_state_of_the_wrong_kind_is_named(good, checkpoint, change):
    values = json.loads((checkpoint / "state.json").read_bytes())
    reseal_with(checkpoint, "state.json", json.dumps({**values, **change}))
    run, _ = good
    problem = _take_over(run, checkpoint)
    assert problem is not None and ("cannot be read" in problem or "is of step" in problem)
    assert _take_over(*good) is None


def test_more_processes_than_there_are_cannot_be_asked_for(good, checkpoint):
    reseal(checkpoint, sharded=True, world_size=10**12)
    with pytest.raises(ConfigError, match="has the weights of 1000000000000 processes, and there are 1; start as many"):
        _take_over(good[0], checkpoint)


def test_weights_that_were_spread_over_processes_are_not_read_as_whole_ones(good, checkpoint):
    reseal(checkpoint, sharded=True)
    message = r"is of weights that were spread over processes \(FSDP\), and here they are not; start as that run was started"
    with pytest.raises(ConfigError, match=message):
        _take_over(good[0], checkpoint)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr
)
def test_a_lack_of_memory_is_no_damage(good, checkpoint, monkeypatch, error):
    def full(*arguments):
        raise error

    monkeypatch.setattr(type(good[0].state), "load", full)
    with pytest.raises(type(error), match=str(error)):
        _take_over(good[0], checkpoint)


def test_a_checkpoint_that_one_process_may_yet_refuse_changes_no_log(good, checkpoint):
    log = good[0].run_dir.path / "metrics.jsonl"
    log.write_text('{"step": 7}\n')
    assert _take_over(good[0], checkpoint) is None
    assert log.read_text() == '{"step": 7}\n'
    log.unlink()


def test_the_run_directory_is_not_left(good):
    run, _ = good
    names = {path.name for path in run.run_dir.path.parent.iterdir()}
    assert names == {"model", "rows.jsonl", "run"}
