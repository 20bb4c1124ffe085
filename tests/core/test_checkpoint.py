"""Checkpoints: whole or absent, and damage is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from truing.train.checkpoint import CheckpointError, CheckpointStore, Contents, DamagedError, read_manifest, verify
from truing.train.checkpoint.files import seal_of, write_file
from truing.train.checkpoint.tensors import safetensors_chunks

ABOUT = {"world_size": 1, "sharded": False, "identity": {"seed": 1}, "config": {"trainer.seed": 1}, "libraries": {"torch": "2"}}
TENSORS = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3)},
    "optimizer": {"exp_avg.a": torch.ones(2, 3), "step.a": torch.tensor(3.0)},
    "loss_state": {},
}
FILES = ["weights.safetensors", "optimizer.safetensors", "loss_state.safetensors", "state.json", "manifest.json"]


def save(folder, step=3, keep=None, tensors=TENSORS):
    contents = Contents(tensors=tensors, documents={"state.json": json.dumps({"step": step}).encode()})
    return CheckpointStore(folder).save(contents, keep=keep, step=step, **ABOUT)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path = save(tmp_path)
    assert path.name == "step-00000003"
    manifest = verify(path)
    assert (manifest.step, manifest.identity, manifest.config) == (3, {"seed": 1}, {"trainer.seed": 1})
    assert torch.equal(load_file(path / "weights.safetensors")["a"], TENSORS["weights"]["a"])
    assert load_file(path / "loss_state.safetensors") == {}
    assert sorted(manifest.files) == sorted(set(FILES) - {"manifest.json"})
    assert names(path) == sorted(FILES)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


@given(
    st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=6)
)
def test_the_library_reads_what_is_written(table):
    tensors = {
        name: (torch.arange(27).reshape(3, 3, 3)[tuple(map(slice, shape))]).to(dtype) for name, (dtype, shape) in table.items()
    }
    tensors.pop("__metadata__", None)
    found = load(b"".join(map(bytes, safetensors_chunks(tensors))))
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == tensors[name].dtype and torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_type_that_the_format_lacks_is_refused():
    with pytest.raises(TypeError, match=r"x is of type torch\.complex64, and a checkpoint holds .*float32"):
        list(safetensors_chunks({"x": torch.zeros(1, dtype=torch.complex64)}))


@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(tmp_path, name):
    path = save(tmp_path)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedError, match=f"{name}.* (changed since it was written|cannot be read)"):
        verify(path)
    (path / name).write_bytes(data[:-1])
    with pytest.raises(DamagedError, match=name):
        verify(path)
    (path / name).unlink()
    with pytest.raises(DamagedError, match=f"{name} cannot be read"):
        verify(path)
    (path / name).symlink_to("/dev/zero")
    with pytest.raises(DamagedError, match=f"{name} is not a plain file"):
        verify(path)
    (path / name).unlink()
    (path / name).write_bytes(data)
    verify(path)


def test_every_bit_of_the_manifest_counts(tmp_path):
    path = save(tmp_path)
    manifest = path / "manifest.json"
    data = manifest.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        manifest.write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"manifest\.json"):
            read_manifest(path)


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path):
    other = save(tmp_path).rename(tmp_path / "step-00000009")
    with pytest.raises(DamagedError, match="is of step 3, and the folder's name of step 9"):
        verify(other)


@pytest.mark.parametrize("name", ["optimizer.bin", "rng.pkl", "notes.txt"])
def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path, name):
    path = save(tmp_path)
    (path / name).write_bytes(b"x")
    with pytest.raises(DamagedError, match=f"{name} is not a file that manifest.json names"):
        verify(path)


def fail(call, number, monkeypatch):
    def failing(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failed_write_leaves_the_ones_before_it_and_no_draft(tmp_path, monkeypatch, call, number):
    before = save(tmp_path, 1)
    fail(call, number, monkeypatch)
    with pytest.raises(CheckpointError, match=f"step-00000002 cannot be written: {os.strerror(number)}.* are whole") as caught:
        save(tmp_path, 2)
    assert ("more than there were" in str(caught.value)) == (number in {errno.ENOSPC, errno.EDQUOT})
    assert list(tmp_path.iterdir()) == [before]
    verify(before)


def test_the_missing_bytes_are_counted(tmp_path, monkeypatch):
    """The weights are 24 bytes, the optimiser's tensors 28 and state.json 11; 40 are free."""
    fail("write", errno.ENOSPC, monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 60, 40))
    with pytest.raises(CheckpointError, match="it needs 63 bytes, about 23 more than there were"):
        save(tmp_path)


def test_later_checkpoints_are_put_aside(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    store = CheckpointStore(tmp_path)
    store.put_aside_after(1)
    assert store.checkpoints() == [store.path(1)]
    assert (tmp_path / ".superseded-step-00000003").is_dir()


def test_only_the_newest_stay_and_drafts_are_no_checkpoints(tmp_path):
    (tmp_path / ".writing-step-00000009").mkdir()
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_damaged_one_is_not_among_those_that_are_kept(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-00000002/weights.safetensors").write_bytes(b"")
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_the_last_good_one_is_never_deleted(tmp_path, monkeypatch):
    """The disk returns something else for the newest one."""
    save(tmp_path, 1)
    monkeypatch.setattr("truing.train.checkpoint.manifest.seal_of", lambda file: None)
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_one_that_is_deleted_by_half_is_no_checkpoint(tmp_path, monkeypatch):
    """A kill while the oldest one is deleted."""
    save(tmp_path, 1)
    real = os.unlink
    monkeypatch.setattr(os, "unlink", lambda *arguments, **options: real(*arguments, **options) or sys.exit(9))
    with pytest.raises(SystemExit):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    store = CheckpointStore(tmp_path)
    assert store.checkpoints() == [store.path(2)]
    store.tidy()
    assert names(tmp_path) == ["step-00000002"]


def test_a_step_that_is_saved_again_replaces_what_was_there(tmp_path):
    save(tmp_path)
    path = save(tmp_path, tensors={**TENSORS, "weights": {"a": torch.zeros(1)}})
    assert load_file(verify(path) and path / "weights.safetensors")["a"].tolist() == [0]
    assert names(tmp_path) == ["step-00000003"]


def test_a_replaced_one_gets_its_name_back_when_the_new_one_did_not_get_it(tmp_path):
    save(tmp_path).rename(tmp_path / ".replaced-step-00000003")
    CheckpointStore(tmp_path).tidy()
    verify(tmp_path / "step-00000003")


def test_a_file_is_never_written_over(tmp_path):
    write_file(tmp_path / "a", [b"12", b"3"])
    assert seal_of(tmp_path / "a").bytes == 3
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", [b"4"])
