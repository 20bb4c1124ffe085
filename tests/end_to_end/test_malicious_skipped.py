"""Steps that were left out, damaged or made to do harm: sealed as well as ours, for a seal is no signature."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.steps import make_run, prepare_folder
from tests.end_to_end.test_malicious_checkpoints import Bomb
from truing.errors import ConfigError
from truing.train.checkpoint.files import seal_of
from truing.train.checkpoint.manifest import read_sealed, sealed
from truing.train.console import Reporter
from truing.train.replay import replay
from truing.train.skipped import keep_skipped, read_skipped
from truing.train.state import random_state

WEIGHTS = "weights-00000001.safetensors"
FILES = ("step-00000001/batch.json", "step-00000001/tensors.safetensors", "step-00000001/config.yaml", WEIGHTS)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malicious-skipped")
    prepare_folder(folder)
    run = make_run(folder, "run", dtype="float32", batch_size=4, max_steps=3)
    run.state.skipped_in_a_row = 1
    assert keep_skipped(run, ["gradient"], run.source.trees(run), random_state())
    replay(run.run_dir.path, 1, reporter=Reporter(quiet=True))
    return run.run_dir.path


@pytest.fixture
def kept(good, tmp_path):
    """Return the folder of the steps in a copy of the run."""
    shutil.copytree(good, tmp_path / "outer/run")
    yield tmp_path / "outer/run/skipped"
    assert not (tmp_path / "mark").exists()


def reseal(kept, **changes):
    """Write a record that fits the files as they are, with some entries changed."""
    batch = kept / FILES[0]
    values = read_sealed(batch)
    files = {Path(file).name: attrs.asdict(seal_of(kept / file)) for file in FILES[1:] if (kept / file).is_file()}
    batch.write_bytes(sealed({**values, "files": files, **changes}))


def refused(kept):
    with pytest.raises(ConfigError, match=r"step-00000001 cannot be read: .*; it is not as the run wrote it") as caught:
        replay(kept.parent, 1, reporter=Reporter(quiet=True))
    return str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere_is_seen(kept, file):
    path = kept / file
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 40)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ConfigError, match=rf"{path.name} (cannot be read|have changed)|contents of {path.name}"):
            read_skipped(kept, 1)
    path.write_bytes(data)
    read_skipped(kept, 1)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("target", ["elsewhere", "/dev/zero", "fifo", "folder", "nowhere"])
def test_what_is_no_plain_file_is_not_opened(kept, tmp_path, file, target):
    path = kept / file
    if target == "elsewhere":
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    if target == "fifo":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / target)
    assert f"{path.name} is not a plain file" in refused(kept)


@pytest.mark.parametrize(
    "name",
    [
        "/x/weights-00000001.safetensors",
        "../weights-00000001.safetensors",
        "..",
        "weights-00000001.bin",
        "weights-1.safetensors",
        "",
    ],
)
def test_weights_elsewhere_are_refused(kept, name):
    shutil.copy(kept / WEIGHTS, kept.parent / WEIGHTS)
    reseal(kept, weights=name, files={**read_sealed(kept / FILES[0])["files"], name: attrs.asdict(seal_of(kept / WEIGHTS))})
    assert f"batch.json names {name!r} as the weights, which are weights-<step>.safetensors in {kept}" in refused(kept)


@pytest.mark.parametrize("file", FILES[1:])
def test_a_pickle_under_a_good_name_is_no_pickle_to_us(kept, tmp_path, file):
    (kept / file).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    reseal(kept)
    with pytest.raises(ConfigError, match="step-00000001 cannot be read: |config.yaml:1: byte 0x80 is not UTF-8"):
        replay(kept.parent, 1, reporter=Reporter(quiet=True))


def test_weights_of_another_model_are_named(kept):
    weights = load_file(kept / WEIGHTS)
    name = min(weights)
    save_file({**weights, name: torch.zeros(3)}, kept / WEIGHTS)
    reseal(kept)
    assert f"{WEIGHTS}: {name!r} is (3,) instead of" in refused(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": 3},
        {"files": []},
        {"trees": [{"prompt_ids": 10**12, "branches": []}]},
        {"random": {"python": ["__import__('os').mkdir('mark')", [], None], "numpy": ["MT19937", 0, 0, 0.0]}},
        {"random": None},
        {"loss_state": 3},
        {"base_dir": None},
    ],
)
def test_a_record_of_the_wrong_kind_is_named(kept, change):
    reseal(kept, **change)
    refused(kept)


@pytest.mark.parametrize(
    "text", ["[" * 100_000 + "]" * 100_000, "3", "[]", "{}", json.dumps({"seal": "0" * 32, "weights": None}), ""]
)
def test_what_is_no_record_is_named(kept, text):
    (kept / FILES[0]).write_text(text)
    assert "batch.json" in refused(kept)


def test_a_record_of_absurd_size_is_not_read(kept):
    with (kept / FILES[0]).open("ab") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    assert "and at most 1,073,741,824 are read" in refused(kept)


def test_a_lack_of_memory_is_no_damage(kept, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("truing.train.replay._as_it_was", full)
    with pytest.raises(torch.OutOfMemoryError):
        replay(kept.parent, 1, reporter=Reporter(quiet=True))
