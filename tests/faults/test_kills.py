"""Kill -9 at random instants: nothing is lost beyond the last checkpoint, none is damaged, and nobody has to do anything."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time

import pytest

from tests.faults.children import fork
from tests.faults.inject import buffered, noting_prompts
from tests.faults.runs import ONLINE, STEPS, prompts_of, same, whole_checkpoints
from tests.faults.saves import found, newest, save, versions
from tests.faults.sizes import named, only_full, portions
from truing.train.checkpoint import CheckpointStore, step_of

NUMBERS = 60_000
"""In a writer's checkpoint, 240 KB: a save takes a few hundredths of a second."""
KEEP = 2


def write_without_end(folder, report, replacing):
    for version in versions(replacing):
        save(folder, version, numbers=NUMBERS, keep=KEEP)
        os.write(report, b"+")


@pytest.mark.parametrize("cases", portions(700, 10, 50), ids=named)
def test_a_writer_that_is_killed(tmp_path, cases, tally):
    during = 0
    for case in cases:
        draw, folder = random.Random(f"writer {case}"), tmp_path / str(case)
        replacing = case % 3 == 2
        end, report = os.pipe()
        child = fork(
            tmp_path / "said", lambda folder=folder, report=report, again=replacing: write_without_end(folder, report, again)
        )
        os.close(report)
        time.sleep(draw.uniform(0.01, 0.15))
        child.send(signal.SIGKILL)
        ended = child.wait()
        assert ended.code == -signal.SIGKILL, ended.said
        done = len(os.read(end, 1 << 16))
        os.close(end)
        during += bool(list(folder.glob(".*")))
        check_folder(folder, done, replacing)
    tally("kill -9 of a writer", kills=len(cases), **{"in the middle of a save": during})


def check_folder(folder, done, replacing):
    """The newest one is the last that was reported or, when the kill came before the report, the one after it; all are whole."""
    begun = list(itertools.islice(versions(replacing), done + 1))
    allowed = {begun[-1], *([begun[-2]] if done else [None])}
    assert newest(folder, NUMBERS) in allowed
    store = CheckpointStore(folder)
    assert all(found(path, NUMBERS) in begun for path in store.checkpoints())
    assert len(store.checkpoints()) <= KEEP + 1
    after = next(version for version in versions(False) if version.step > done)
    save(folder, after, numbers=NUMBERS, keep=KEEP)
    assert newest(folder, NUMBERS) == after
    assert len(store.checkpoints()) <= KEEP and not list(folder.glob(".*"))


def kill_somewhere(tiny, run, options, how, draw, *, real, after_a_save):
    """Start a run and kill it at a random instant of its life; return where it is and the checkpoints that it had.

    Of a program's life that is what a fork's is: from when it has a run directory. Most of a short run's life is its start, so that
    the instant is of what is left after the first checkpoint, where that is asked for.
    """
    seconds = tiny.unbroken(*options, **how).seconds
    for attempt in itertools.count():
        folder = run.with_name(f"{run.name}-{attempt}")
        began, child = time.monotonic(), tiny.start(folder, *options, real=real, **how)
        if real:
            child.until(folder.exists, "the run directory")
        if after_a_save:
            child.until(lambda folder=folder: list(folder.glob("checkpoints/step-*")), "the first checkpoint")
            child.has_ended(draw.uniform(0.0, 1.0) * max(0.0, seconds - (time.monotonic() - began)))
        else:
            child.has_ended(draw.uniform(0.05, 1.0) * seconds)
        child.send(signal.SIGKILL)
        ended = child.wait()
        if ended.code != 0:  # else it was faster this time
            assert ended.code == -signal.SIGKILL, ended.said
            return folder, whole_checkpoints(folder)
    raise AssertionError


OPTIONS = (
    ("trainer.save_steps=1", "trainer.save_total_limit=2"),
    ("trainer.save_steps=2",),
    ("trainer.save_steps=3", "trainer.save_in_background=false", "trainer.save_total_limit=1"),
)


def kill_and_resume(tiny, tmp_path, case, how, *, real=False, after_a_save=False):
    """Kill a run, or a program, and go on with it in a fork, which ends with the same bits; return where it is and went on from."""
    draw, options = random.Random(f"run {case}"), (*how.pop("settings", ()), *OPTIONS[case % len(OPTIONS)])
    run, saved = kill_somewhere(tiny, tmp_path / str(case), options, how, draw, real=real, after_a_save=after_a_save)
    ended = tiny.finish(run, *options, resume=True, **how)
    same(run, tiny.unbroken(*options, **how))
    assert "damaged" not in ended.output
    if saved:
        assert f"resumed from {saved[-1]}: " in ended.output, ended.said
    return run, saved[-1] if saved else None


@pytest.mark.parametrize("cases", portions(140, 2, 10), ids=named)
def test_a_run_on_collected_data_that_is_killed(tmp_path, tiny, cases, tally):
    resumed = sum(bool(kill_and_resume(tiny, tmp_path, case, {})[1]) for case in cases)
    tally("kill -9 of a run", kills=len(cases), **{"with a checkpoint to go on from": resumed})


@pytest.mark.parametrize("cases", portions(140, 2, 10), ids=named)
def test_a_run_with_a_rollout_buffer_that_is_killed(tmp_path, tiny, cases, tally):
    resumed = sum(bool(kill_and_resume(tiny, tmp_path, case, {"before": buffered})[1]) for case in cases)
    tally("kill -9 of a run with a rollout buffer", kills=len(cases), **{"with a checkpoint to go on from": resumed})


@pytest.mark.parametrize("cases", portions(50, 1, 5), ids=named)
def test_a_run_that_samples_its_completions_and_is_killed(tmp_path, tiny, cases, tally):
    """Four in five are killed after a save. A rollout batch is of two steps, and an odd step in its middle."""
    steps = []
    for case in cases:
        how = {"settings": ONLINE, "before": noting_prompts}
        run, saved = kill_and_resume(tiny, tmp_path, case, how, after_a_save=case % 5 < 4)
        assert sorted(prompts_of(run)) == list(range(1, STEPS + 1))
        steps.append(step_of(saved) if saved else 0)
    resumed, midway = sum(step > 0 for step in steps), sum(step % 2 for step in steps)
    counts = {"with a checkpoint to go on from": resumed, "of these in the middle of a batch": midway}
    tally("kill -9 of a run that samples", kills=len(cases), **counts)


@only_full
@pytest.mark.parametrize("cases", portions(20, 0, 5), ids=named)
def test_a_program_that_is_killed(tmp_path, tiny, cases, tally):
    resumed = sum(bool(kill_and_resume(tiny, tmp_path, case, {}, real=True)[1]) for case in cases)
    tally("kill -9 of a program", kills=len(cases), **{"with a checkpoint to go on from": resumed})
