"""The run directory: one process at a time, and nothing in it half written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from truing.errors import ConfigError, SetupError, TruingError
from truing.train.run_dir import RunDir


def hold(folder):
    """Start a process that claims the folder and waits."""
    script = "import sys; from pathlib import Path; from truing.train.run_dir import RunDir\n"
    script += "RunDir(Path(sys.argv[1])).claim(resume=True); print('claimed', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "claimed\n"
    return process


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path):
    other = hold(tmp_path / "run")
    try:
        with pytest.raises(ConfigError, match=rf"process {other.pid} on \S+ is writing to .*run; wait for it or stop it"):
            RunDir(tmp_path / "run").claim(resume=True)
        assert RunDir(tmp_path / "run").owner().startswith(f"{other.pid} on ")
    finally:
        other.kill()
        other.communicate()
    assert RunDir(tmp_path / "run").owner() is None
    mine = RunDir(tmp_path / "run")
    mine.claim(resume=True)
    assert mine.owner() == RunDir(tmp_path / "run").owner()
    assert RunDir(tmp_path / "run").owner().startswith(f"{os.getpid()} on ")
    mine.close()


def test_a_running_run_is_named_rather_than_taken_for_a_finished_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    other = hold(tmp_path)
    try:
        with pytest.raises(ConfigError, match=f"process {other.pid} on"):
            RunDir(tmp_path).claim(resume=False)
    finally:
        other.kill()
        other.communicate()
    with pytest.raises(ConfigError, match="holds another run; continue it with --resume"):
        RunDir(tmp_path).claim(resume=False)


def test_lines_that_the_disk_does_not_take_are_written_with_the_next(tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path)
    assert run_dir.append_metrics({"step": 1}) is None
    path = type(tmp_path)

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(path, "open", full)
        assert run_dir.append_metrics({"step": 2}).errno == errno.ENOSPC
    assert run_dir.metrics() == b'{"step": 1}\n{"step": 2}\n'
    assert run_dir.append_metrics({"step": 3}) is None
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_completion_stays_on_its_line_whatever_is_in_it(tmp_path):
    said = "a\x85b\u2028c\u2029d\re\vf\\\x85"
    run_dir = RunDir(tmp_path)
    assert run_dir.append_completions([{"completion": said}, {"completion": ""}]) is None
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert [json.loads(line)["completion"] for line in lines] == [said, ""]


def test_a_model_that_cannot_be_written_leaves_the_one_before_it(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.replace_model(writing("1"), [1])
    with pytest.raises(TruingError, match="No space left on device") as caught:
        run_dir.replace_model(writing("2", OSError(errno.ENOSPC, "No space left on device")), [1 << 60])
    assert caught.value.exit_code == 1
    assert "(it needs 1,152,921,504,606,846,976 bytes, about 1,152," in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (run_dir.model / "config.json").read_text() == "1"
    run_dir.replace_model(writing("3"), [1])
    assert (run_dir.model / "config.json").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def writing(text, error=None):
    """Return a function that writes a model of one byte, and then fails."""

    def write(folder):
        folder.mkdir()
        (folder / "config.json").write_text(text)
        if error is not None:
            raise error

    return write


@pytest.mark.parametrize(
    ("number", "short"),
    [(errno.EDQUOT, " (it needs 10 bytes, about 9 more than there were)"), (errno.EROFS, ""), (errno.EIO, "")],
)
def test_what_safetensors_says_of_a_disk_is_understood(tmp_path, number, short):
    """One of ten bytes was written."""
    error = SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    with pytest.raises(TruingError) as caught:
        RunDir(tmp_path).replace_model(writing("1", error), [10])
    assert str(caught.value) == (
        f"{tmp_path}/model cannot be written: {os.strerror(number)}{short}; the checkpoints are as they were. Free space or mend "
        "the disk, and go on with --resume"
    )


def test_what_is_no_fault_of_the_disk_is_not_called_one(tmp_path):
    with pytest.raises(SafetensorError, match="no such type"):
        RunDir(tmp_path).replace_model(writing("1", SafetensorError("no such type")), [10])


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl"])
def test_a_file_that_the_disk_does_not_take_is_as_it_was(tmp_path, monkeypatch, name):
    run_dir = RunDir(tmp_path)
    run_dir.write_config("a: 1\n")
    run_dir.write_environment(seed=1)
    run_dir.rewrite_metrics(b"{}\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.write

    def half(file, data):
        real(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", half)
    change = {
        "config.yaml": lambda: run_dir.write_config("a: 2\n"),
        "environment.json": lambda: run_dir.write_environment(seed=2),
        "metrics.jsonl": lambda: run_dir.rewrite_metrics(b"{}{}"),
    }
    with pytest.raises(SetupError, match=rf"{name} cannot be written: No space left on device; the checkpoints are as they were"):
        change[name]()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
