"""Signals at random instants: a whole checkpoint each, the right exit code, and the same end when the run goes on."""

from __future__ import annotations

import itertools
import random
import signal
import time

import pytest

from tests.faults.inject import slow_disk
from tests.faults.runs import end_of, same, whole_checkpoints
from tests.faults.sizes import named, only_full, portions

OPTIONS = ("method=simpo", "trainer.batch_size=2")
"""Without a reference, for time."""
STEPS = 24
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


def first_step_of(run):
    return lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0


def was_late(run, number, code):
    """Whether the last step was over, after which a run does nothing else than end; a signal to Python as it exits may kill it."""
    if code == 0:
        return number != signal.SIGUSR1 or len(whole_checkpoints(run)) == 1
    return code == -number and end_of(run).weights


def signalled(tiny, folder, number, draw, **how):
    """Send a signal to a run at a random instant after its first step; return it, and how it ended. Begins anew when it is late."""
    seconds = tiny.unbroken(*OPTIONS).seconds  # of a fork, which is nearly all steps: a program is many seconds older at its first
    for attempt in itertools.count():
        run = folder / f"{signal.Signals(number).name}-{attempt}"
        child = tiny.start(run, *OPTIONS, **how)
        child.until(first_step_of(run), "the first step")
        time.sleep(draw.uniform(0, 0.6 * seconds))
        child.send(number)
        ended = child.wait()
        if not was_late(run, number, ended.code):
            return run, ended
    raise AssertionError


def signal_and_resume(tiny, folder, case, **how):
    """Signal a run, or a program, and go on with it in a fork, which ends with the same bits."""
    number, draw = NUMBERS[case % 3], random.Random(f"signal {case}")
    run, ended = signalled(tiny, folder / str(case), number, draw, **how)
    assert ended.code == CODES[number], ended.said
    saved = whole_checkpoints(run)
    steps = int(saved[0].name[-8:])
    assert 0 < steps < STEPS
    if number == signal.SIGUSR1:
        assert [path.name[-2:] for path in saved] == [f"{steps:02d}", str(STEPS)]
        same(run, tiny.unbroken(*OPTIONS))
        ended = tiny.finish(run, *OPTIONS, resume=saved[0])
    else:
        assert len(saved) == 1
        assert f"stopped by {signal.Signals(number).name}; saved {saved[0]}; continue with --resume" in ended.errors
        ended = tiny.finish(run, *OPTIONS, resume=True)
    assert f"{steps} of {STEPS} steps done" in ended.output
    same(run, tiny.unbroken(*OPTIONS))
    return signal.Signals(number).name


@pytest.mark.parametrize("cases", portions(180, 3, 10), ids=named)
def test_a_signal_at_a_random_instant(tmp_path, tiny, cases, tally):
    for case in cases:
        tally("signals", **{signal_and_resume(tiny, tmp_path, case): 1})


@only_full
@pytest.mark.parametrize("cases", portions(20, 0, 2), ids=named)
def test_a_signal_to_a_program(tmp_path, tiny, cases, tally):
    for case in cases:
        tally("signals to a program", **{signal_and_resume(tiny, tmp_path, case, real=True): 1})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_slow_save_at_once(tmp_path, tiny, number, tally):
    """Eight files of a second each; the checkpoint before is as it was."""
    options, run = ("trainer.save_steps=2",), tmp_path / "run"
    tiny.finish(run, *options)
    unbroken = end_of(run)
    checkpoints = run / "checkpoints"
    child = tiny.start(run, *options, resume=checkpoints / "step-00000004", before=lambda: slow_disk(1.0))
    child.until(lambda: (checkpoints / ".writing-step-00000006").exists(), "a save")
    child.send(number)
    time.sleep(0.5)
    assert not child.has_ended(), "the first signal waits for the save"
    began = time.monotonic()
    child.send(number)
    ended = child.wait()
    assert time.monotonic() - began < 1
    assert ended.code == (-signal.SIGTERM if number == signal.SIGTERM else 130), ended.said
    assert [path.name[-1] for path in whole_checkpoints(run)] == ["2", "4"]
    tiny.finish(run, *options, resume=True)
    same(run, unbroken)
    tally("second signals during a save", signals=1)
