"""Checkpoints: whole or absent, and damage is named."""

from __future__ import annotations

import json

import pytest
import torch

from truing.errors import ConfigError, SetupError
from truing.train.checkpoint import (
    damage,
    list_checkpoints,
    load_checkpoint,
    put_aside_after,
    require_same_run,
    save_checkpoint,
)

IDENTITY = {"data": "abc", "seed": 1}
NUMBERS = {"step": 3, "history": [{"loss": float("nan")}]}
TENSORS = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"exp_avg.a": torch.ones(2, 3)}, "loss_state": {}}


def save(folder, step=3, keep=None):
    return save_checkpoint(folder, step, NUMBERS, TENSORS, identity=IDENTITY, keep=keep)


def test_round_trip(tmp_path):
    path = save(tmp_path)
    assert path.name == "step-00000003"
    assert damage(path) is None
    require_same_run(path, IDENTITY)
    numbers, tensors = load_checkpoint(path)
    assert numbers["step"] == 3
    assert str(numbers["history"][0]["loss"]) == "nan"
    assert torch.equal(tensors["weights"]["a"], TENSORS["weights"]["a"])
    assert tensors["loss_state"] == {}


def test_no_pickle(tmp_path):
    names = {path.suffix for path in save(tmp_path).iterdir()}
    assert names == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "optimizer.safetensors"])
def test_damage_is_named(tmp_path, name):
    path = save(tmp_path)
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    assert damage(path) == f"the contents of {name} have changed since it was written"
    (path / name).write_bytes(data[:-1])
    assert damage(path) == f"{name} has {len(data) - 1} bytes instead of {len(data)}"
    (path / name).unlink()
    assert "cannot be read" in damage(path)


def test_a_broken_manifest_is_damage(tmp_path):
    path = save(tmp_path)
    (path / "manifest.json").write_text("{")
    assert "manifest.json" in damage(path)


def test_another_run_is_refused_and_what_differs_is_named(tmp_path):
    path = save(tmp_path)
    with pytest.raises(ConfigError, match=r"a run with other seed \(1, now 2\); resume with what that run had"):
        require_same_run(path, {**IDENTITY, "seed": 2})


def test_a_failed_write_leaves_the_ones_before_it_and_no_draft(tmp_path, monkeypatch):
    before = save(tmp_path, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("truing.train.checkpoint.save_file", full)
    with pytest.raises(SetupError, match="step-00000002 cannot be written: .*No space left"):
        save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [before]
    assert damage(before) is None


def test_later_checkpoints_are_put_aside(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    put_aside_after(tmp_path, 1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert (tmp_path / ".superseded-step-00000003").is_dir()


def test_only_the_newest_stay_and_drafts_are_no_checkpoints(tmp_path):
    (tmp_path / ".writing-step-00000009").mkdir()
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_the_manifest_seals_every_file(tmp_path):
    path = save(tmp_path)
    sealed = json.loads((path / "manifest.json").read_text())["files"]
    assert set(sealed) == {file.name for file in path.iterdir()} - {"manifest.json"}
