"""Disks that are full, read-only or slow: the last good checkpoint stays, the user hears what is lacking, and the run goes on."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import threading

import pytest

from tests.faults.inject import at_step, slow_disk
from tests.faults.runs import Tiny, same, whole_checkpoints
from tests.faults.sizes import FULL, only_full
from truing.train import loop, run_dir

MEGABYTE = 1 << 20
OPTIONS = ("trainer.save_steps=2",)
FULL_AT, FREE_AT = 4, 6
"""Steps done when the disk fills up, and when there is room again: the save of step 6 fails, and that of step 8 does not."""
LARGER = {"hidden_size": 288, "layers": 2}
"""Of a model whose checkpoint has 20 MB: a third are weights, two the optimiser's moments."""
WHOLE, LARGEST = 19, 13
"""Megabytes, rounded up, of a checkpoint and of its largest file; what is less does not do."""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return Tiny.make(tmp_path_factory.mktemp("big"), model=LARGER)


def names(run):
    return [int(path.name[-8:]) for path in whole_checkpoints(run)]


def no_drafts(run):
    return not list((run / "checkpoints").glob(".writing*"))


def limit(megabytes):
    """Let no file of this process grow beyond a size; a soft limit, which can be lifted again."""
    most = resource.RLIM_INFINITY if megabytes is None else megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def between_saves(step, act):
    """Do something before a step, counted from 0, when the save before it has ended."""

    def do(run):
        for thread in threading.enumerate():
            if thread.name == "truing-save":
                thread.join()
        act(run)

    at_step(step, do)


def refused_and_freed(tiny, run, fill, free, **how):
    """The save of step 6 fails and the next interval tries again; return what was said of it."""
    ended = tiny.finish(run, *OPTIONS, before=lambda: (between_saves(FULL_AT, fill), between_saves(FREE_AT, free)), **how)
    same(run, tiny.unbroken(*OPTIONS))
    assert names(run) == [2, 4, 8, 10, 12] and no_drafts(run)
    (warning,) = [line for line in ended.output.splitlines() if line.startswith("warning: checkpoint")]
    assert warning.endswith("Training goes on, and the next save tries again")
    return warning


def refused_to_the_end(tiny, run, fill, free=lambda: None, **how):
    """Two saves in a row fail and end the run; with room again it goes on. Return the two messages."""
    ended = tiny.start(run, *OPTIONS, before=lambda: between_saves(FULL_AT, fill), **how).wait()
    assert ended.code == 1, ended.said
    assert names(run) == [2, 4] and no_drafts(run)
    (warning,) = [line for line in ended.output.splitlines() if line.startswith("warning: checkpoint")]
    free()
    assert "4 of 12 steps done" in tiny.finish(run, *OPTIONS, resume=True, **how).output
    same(run, tiny.unbroken(*OPTIONS))
    return warning, ended.errors


def lacking(message):
    """Return how many bytes a checkpoint or the model needs, and how many were short, as a message says."""
    found = re.search(r"it needs ([\d,]+) bytes, about ([\d,]+) more than there were\); the (ones|checkpoints) ", message)
    assert found, message
    return [int(number.replace(",", "")) for number in found.groups()[:2]]


def refused_at_the_end(tiny, run, fill, free=lambda: None):
    """The disk does not take the model; with room again it is written. Return the error."""

    def before():
        real = loop._finish
        loop._finish = lambda run: (fill(), real(run))

    ended = tiny.start(run, *OPTIONS, before=before).wait()
    assert ended.code == 1, ended.said
    assert f"{run}/model cannot be written: " in ended.errors and "and go on with --resume" in ended.errors
    assert names(run) == [2, 4, 6, 8, 10, 12] and not (run / "model").exists() and not (run / ".writing-model").exists()
    free()
    assert "12 of 12 steps done" in tiny.finish(run, *OPTIONS, resume=True).output
    same(run, tiny.unbroken(*OPTIONS))
    return ended.errors


def test_a_model_that_the_disk_does_not_take(tmp_path, big, tally):
    """A limit on files, of which the library that writes the weights tells in words alone."""
    error = refused_at_the_end(big, tmp_path / "run", lambda: limit(1))
    assert os.strerror(errno.EFBIG) in error
    needed, short = lacking(error)
    weights = (tmp_path / "run/model/model.safetensors").stat().st_size
    assert abs(needed - weights) < MEGABYTE / 10 and needed - short == MEGABYTE
    tally("disks that do not take the model", runs=1)


@only_full
@pytest.mark.parametrize("megabytes", [0, 3, 6])
def test_a_disk_that_is_full_when_the_model_is_written(mounted, big, megabytes, tally):
    run = mounted / "run"
    try:
        error = refused_at_the_end(big, run, lambda: fill(mounted, megabytes * MEGABYTE), lambda: free(mounted))
        needed, short = lacking(error)
        assert os.strerror(errno.ENOSPC) in error and abs(short - (needed - megabytes * MEGABYTE)) < MEGABYTE / 2
    finally:
        free(mounted)
        shutil.rmtree(run)
    tally("disks that do not take the model", runs=1)


@only_full
def test_a_directory_that_is_read_only_when_the_model_is_written(mounted, big, tally):
    run = mounted / "read-only-model"
    try:
        assert os.strerror(errno.EROFS) in refused_at_the_end(big, run, lambda: read_only(run), lambda: writable(run))
    finally:
        writable(run)
    tally("disks that do not take the model", runs=1)


@pytest.mark.parametrize("megabytes", range(1, LARGEST) if FULL else [7])
def test_a_limit_at_every_megabyte_of_a_file(tmp_path, big, megabytes, tally):
    """The optimiser's file is the largest, twice that of the weights."""
    warning = refused_and_freed(big, tmp_path / "freed", lambda _: limit(megabytes), lambda _: limit(None))
    optimizer = (tmp_path / "freed/checkpoints/step-00000002/optimizer.safetensors").stat().st_size
    needed, short = lacking(warning)
    assert f"step-00000006 cannot be written: {os.strerror(errno.EFBIG)}" in warning
    assert WHOLE - 1 < needed / MEGABYTE < WHOLE and LARGEST - 1 < optimizer / MEGABYTE < LARGEST
    assert abs(short - (optimizer - megabytes * MEGABYTE)) < MEGABYTE / 10
    if FULL:
        _, error = refused_to_the_end(big, tmp_path / "ended", lambda _: limit(megabytes))
        assert "step-00000008 cannot be written: " in error and lacking(error)
    tally("file-size limits at a megabyte of a save", runs=1 + FULL)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """A small file system of its own, where this user may mount one."""
    folder = tmp_path_factory.mktemp("mounted")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240m", "faults", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, left):
    """Leave so many bytes free."""
    disk = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left))


def free(folder):
    (folder / "filler").unlink(missing_ok=True)


@only_full
@pytest.mark.parametrize("megabytes", range(WHOLE))
def test_a_disk_that_is_full_at_every_megabyte_of_a_save(mounted, big, megabytes, tally):
    left, run = megabytes * MEGABYTE, mounted / f"run-{megabytes}"
    try:
        warning = refused_and_freed(big, run, lambda _: fill(mounted, left), lambda _: free(mounted))
        assert os.strerror(errno.ENOSPC) in warning
        needed, short = lacking(warning)
        assert WHOLE - 1 < needed / MEGABYTE < WHOLE and abs(short - (needed - left)) < MEGABYTE / 2
        ended = mounted / f"ended-{megabytes}"
        _, error = refused_to_the_end(big, ended, lambda _: fill(mounted, left), lambda: free(mounted))
        assert lacking(error)
    finally:
        free(mounted)
        for path in mounted.iterdir():
            shutil.rmtree(path)
    tally("disks that are full at a megabyte of a save", runs=2)


@only_full
@pytest.mark.parametrize("megabytes", range(WHOLE))
def test_a_program_whose_disk_is_full(mounted, big, megabytes, tally):
    """A disk that another program fills."""
    run = mounted / f"program-{megabytes}"
    try:
        child = big.start(run, *OPTIONS, "trainer.max_steps=400", real=True)
        child.until(lambda: (run / "checkpoints/step-00000004").exists(), "a checkpoint")
        fill(mounted, megabytes * MEGABYTE)
        ended = child.wait()
        assert ended.code == 1, ended.said
        steps = names(run)
        assert steps[:2] == [2, 4] and no_drafts(run) and lacking(ended.errors), ended.said
        free(mounted)
        assert big.start(run, *OPTIONS, f"trainer.max_steps={steps[-1] + 2}", resume=True).wait().code == 0
        assert names(run)[-1] == steps[-1] + 2
    finally:
        free(mounted)
        shutil.rmtree(run)
    tally("disks that are full, a program", runs=1)


def read_only(folder):
    """Mount a folder over itself, read-only: files that are open can still be written."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def writable(folder):
    while not subprocess.run(["umount", folder], capture_output=True).returncode:
        pass


@only_full
def test_a_directory_that_becomes_read_only(mounted, tiny, tally):
    run = mounted / "read-only"
    try:
        warning = refused_and_freed(tiny, run, lambda _: read_only(run), lambda _: writable(run))
        assert os.strerror(errno.EROFS) in warning and "step-00000006 cannot be written" in warning
        run = mounted / "read-only-to-the-end"
        _, error = refused_to_the_end(tiny, run, lambda _: read_only(run), lambda: writable(run))
        assert os.strerror(errno.EROFS) in error
        read_only(run)
        ended = tiny.start(run, *OPTIONS, resume=True).wait()
        assert ended.code == 3 and f"{run} cannot be written: {os.strerror(errno.EROFS)}" in ended.errors, ended.said
    finally:
        writable(run)
        writable(mounted / "read-only")
    assert names(run) == [2, 4, 6, 8, 10, 12]
    tally("read-only directories", runs=3)


@only_full
def test_a_program_whose_directory_becomes_read_only(mounted, tiny, tally):
    run = mounted / "read-only-program"
    try:
        child = tiny.start(run, *OPTIONS, "trainer.max_steps=4000", real=True)
        child.until(lambda: (run / "checkpoints/step-00000004").exists(), "a checkpoint")
        read_only(run)
        ended = child.wait()
        assert ended.code == 1 and os.strerror(errno.EROFS) in ended.errors, ended.said
    finally:
        writable(run)
    steps = names(run)
    assert tiny.start(run, *OPTIONS, f"trainer.max_steps={steps[-1] + 2}", resume=True, real=True).wait().code == 0
    tally("disks that are full, a program", runs=1)


def test_a_resume_on_a_full_disk_loses_nothing(tmp_path, tiny):
    """The quota lets it read everything, and not write the log."""
    run = tmp_path / "run"
    tiny.finish(run, *OPTIONS)

    def over_quota(path, data):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    ended = tiny.start(run, *OPTIONS, resume=True, before=lambda: setattr(run_dir, "replace_file", over_quota)).wait()
    assert ended.code == 3 and f"metrics.jsonl cannot be written: {os.strerror(errno.EDQUOT)}" in ended.errors, ended.said
    assert names(run) == [2, 4, 6, 8, 10, 12]
    tiny.finish(run, *OPTIONS, resume=True)
    same(run, tiny.unbroken(*OPTIONS))


@pytest.mark.parametrize("background", ["true", "false"] if FULL else ["true"])
def test_a_save_that_is_given_up_is_never_sealed(tmp_path, tiny, background, tally):
    """The weights are written after three seconds, when the run has gone on for one and changed what is read."""
    run, options = tmp_path / "run", (*OPTIONS, f"trainer.save_in_background={background}", "trainer.save_timeout=2")
    ended = tiny.start(run, *options, before=lambda: slow_disk(3.0, "weights")).wait()
    assert ended.code == 1, ended.said
    assert f"checkpoint {run}/checkpoints/step-00000002 was not written within 2 s" in ended.output
    assert f"checkpoint {run}/checkpoints/step-00000004 was not written within 2 s" in ended.errors
    assert names(run) == []
    assert "starting from the first step" in tiny.finish(run, *options, resume=True).output
    same(run, tiny.unbroken(*OPTIONS))
    tally("saves that take too long", saves=2)


def test_a_run_goes_on_after_a_save_that_was_given_up(tmp_path, tiny, tally):
    def begin():
        mend = slow_disk(3.0, "weights")
        at_step(3, lambda _: mend())
        between_saves(10, lambda _: None)

    run = tmp_path / "run"
    ended = tiny.finish(run, *OPTIONS, "trainer.save_timeout=2", before=begin)
    assert "step-00000002 was not written within 2 s. Training goes on, and the next save tries again" in ended.output
    assert names(run) == [4, 6, 8, 10, 12] and no_drafts(run)
    same(run, tiny.unbroken(*OPTIONS))
    tally("saves that take too long", saves=1)
