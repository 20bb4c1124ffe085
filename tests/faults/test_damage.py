"""Damaged checkpoints: the file is named and the checkpoint before it used, or nothing is lost; the end is always the same."""

from __future__ import annotations

import os
import random
import re
import shutil

import pytest

from tests.faults.damage import HARMS
from tests.faults.inject import at_step
from tests.faults.runs import same, whole_checkpoints
from tests.faults.sizes import FULL, only_full, portions
from tests.faults.test_resume_matrix import stop
from truing.train.checkpoint import DamagedError, verify

FILES = (
    *("weights.safetensors", "optimizer.safetensors", "loss_state.safetensors", "source.safetensors", "random-0.safetensors"),
    *("state.json", "metrics.jsonl", "manifest.json"),
)
CASES = [(harm, file) for harm in HARMS for file in FILES]
SAMPLE = [("truncated", "optimizer.safetensors"), ("swapped", "random-0.safetensors"), ("a_pipe", "manifest.json")]
OPTIONS = ("trainer.save_steps=4",)
DONE = 8


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """A run that was stopped after its second checkpoint."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    ended = tiny.start(run, *OPTIONS, before=lambda: at_step(DONE - 1, lambda _: stop())).wait()
    assert ended.code == 143, ended.said
    assert [path.name[-1] for path in whole_checkpoints(run)] == ["4", "8"]
    assert sorted(path.name for path in (run / "checkpoints/step-00000008").iterdir()) == sorted(FILES)
    return run


def resume(tiny, run, **how):
    """Go on with a run, which must come to the end of the unbroken one; return what it said."""
    ended = tiny.finish(run, *OPTIONS, resume=True, **how)
    same(run, tiny.unbroken(*OPTIONS))
    return ended.output


def harm_and_resume(tiny, stopped, folder, harm, file, **how):
    run = folder / f"{harm}-{file}" / "run"
    shutil.copytree(stopped, run)
    older, newest = whole_checkpoints(run)
    HARMS[harm](newest / file, older, random.Random(f"{harm} {file}"))
    try:
        verify(newest)
    except DamagedError as error:
        assert_named(error, file, harm)
        output = resume(tiny, run, **how)
        assert f"warning: {newest} is damaged: {error}" in output
        assert "4 of 12 steps done" in output
        named = 1
    else:  # nothing has changed: the contents were the same, or this user may read everything
        assert harm in ("outdated", "forbidden")
        assert "8 of 12 steps done" in resume(tiny, run, **how)
        named = 0
    assert not (run.parent / "proof").exists()
    return named


def assert_named(error, file, harm):
    """Of two files that are swapped, either may be named."""
    names = re.findall(r"[\w-]+\.(?:safetensors|jsonl|json)", str(error))
    assert set(names) & (set(FILES) if harm == "swapped" else {file}), str(error)


@pytest.mark.parametrize(("harm", "file"), CASES if FULL else SAMPLE)
def test_a_damaged_file_is_named_and_the_run_ends_the_same(tmp_path, tiny, stopped, harm, file, tally):
    named = harm_and_resume(tiny, stopped, tmp_path, harm, file)
    tally("faults in a file of a checkpoint", faults=1, named=named, harmless=1 - named)


@only_full
@pytest.mark.parametrize(("harm", "file"), random.Random(4).sample(CASES, 20))
def test_a_program_names_it_too(tmp_path, tiny, stopped, harm, file, tally):
    named = harm_and_resume(tiny, stopped, tmp_path, harm, file, real=True)
    tally("faults in a file of a checkpoint, a program", faults=1, named=named)


def flip(checkpoint, draw):
    """Flip one bit of all those of a checkpoint; return its file, and a function that flips it back."""
    files = sorted(checkpoint.iterdir())
    file = draw.choices(files, [path.stat().st_size for path in files])[0] if draw.random() < 0.5 else draw.choice(files)
    position, mask = draw.randrange(file.stat().st_size), 1 << draw.randrange(8)

    def change():
        with file.open("r+b") as stream:
            stream.seek(position)
            byte = stream.read(1)[0]
            stream.seek(position)
            stream.write(bytes([byte ^ mask]))

    change()
    return file, change


@pytest.mark.parametrize("cases", portions(2000, 100, 500), ids=str)
def test_every_flipped_bit_is_named(tmp_path, stopped, cases, tally):
    checkpoint = shutil.copytree(stopped, tmp_path / "run") / "checkpoints/step-00000008"
    for case in cases:
        file, back = flip(checkpoint, random.Random(f"flip {case}"))
        with pytest.raises(DamagedError, match=f"{file.name}.* (changed|cannot be read)"):
            verify(checkpoint)
        back()
    verify(checkpoint)
    tally("flipped bits", flips=len(cases), named=len(cases))


@pytest.mark.parametrize("cases", portions(50, 1, 10), ids=str)
def test_a_run_goes_on_from_the_one_before_a_flipped_bit(tmp_path, tiny, stopped, cases, tally):
    for case in cases:
        run = shutil.copytree(stopped, tmp_path / str(case) / "run")
        file, _ = flip(run / "checkpoints/step-00000008", random.Random(f"flip and resume {case}"))
        output = resume(tiny, run)
        assert re.search(rf"step-00000008 is damaged: .*{file.name}", output) and "4 of 12 steps done" in output
    tally("flipped bits, whole resumes", resumed=len(cases))


def replace_by_file(checkpoints):
    shutil.rmtree(checkpoints / "step-00000008")
    (checkpoints / "step-00000008").write_bytes(b"x")


def replace_by_link(checkpoints):
    (checkpoints / "step-00000008").rename(checkpoints.parent.parent / "elsewhere")
    (checkpoints / "step-00000008").symlink_to("/dev/null")


def hollow(checkpoints):
    shutil.rmtree(checkpoints / "step-00000008")
    (checkpoints / "step-00000008").mkdir()


def older_one_under_its_name(checkpoints):
    shutil.rmtree(checkpoints / "step-00000008")
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000008")


FOLDERS = {
    "a file": replace_by_file,
    "a link": replace_by_link,
    "empty": hollow,
    "an older one under its name": older_one_under_its_name,
}


@pytest.mark.parametrize("kind", FOLDERS if FULL else ["empty"])
def test_a_damaged_folder(tmp_path, tiny, stopped, kind, tally):
    run = shutil.copytree(stopped, tmp_path / "here" / "run")
    FOLDERS[kind](run / "checkpoints")
    output = resume(tiny, run)
    assert "step-00000008 is damaged: " in output
    assert "4 of 12 steps done" in output
    assert os.path.lexists(run / "checkpoints/.superseded-step-00000008"), "what is damaged is put aside"
    tally("faults of a checkpoint's folder", faults=1, named=1)


def test_where_all_are_damaged_nothing_is_lost(tmp_path, tiny, stopped, tally):
    run = shutil.copytree(stopped, tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        (path / "weights.safetensors").rename(path / "elsewhere")
    before = {path: path.read_bytes() for path in (run / "metrics.jsonl", *run.rglob("*.safetensors"))}
    ended = tiny.start(run, *OPTIONS, resume=True).wait()
    assert ended.code == 1, ended.said
    assert f"none of the checkpoints in {run}/checkpoints can be used (2 tried), and nothing was changed" in ended.errors
    assert before == {path: path.read_bytes() for path in (run / "metrics.jsonl", *run.rglob("*.safetensors"))}
    for path in (run / "checkpoints").iterdir():
        (path / "elsewhere").rename(path / "weights.safetensors")
    resume(tiny, run)
    tally("faults of a checkpoint's folder", faults=1, named=1)
