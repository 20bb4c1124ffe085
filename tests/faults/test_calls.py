"""A kill, and a loss of power, at every call of a save to the file system: the checkpoint before or the new one is whole."""

from __future__ import annotations

import json
import shutil
import signal

import attrs
import pytest

from tests.faults.children import fork
from tests.faults.disk import LOSSES, Disk, write_tree
from tests.faults.filesystem import Counter, Recorder
from tests.faults.saves import Version, found, newest, save
from tests.faults.sizes import FULL
from truing.train.checkpoint import CheckpointStore

EVERY = 1 if FULL else 9
"""Of so many calls one is tried."""


@attrs.frozen
class Situation:
    """What is there before a save, and the save."""

    before: tuple[Version, ...]
    saved: Version
    keep: int | None = None

    def prepare(self, run):
        """Save what is there before, and return the folder of the checkpoints."""
        run.mkdir(parents=True)
        for version in self.before:
            save(run / "checkpoints", version)
        return run / "checkpoints"

    @property
    def old(self):
        """The newest one before; None when there is none."""
        return self.before[-1] if self.before else None


SITUATIONS = {
    "the first": Situation((), Version(1)),
    "one that deletes the one before": Situation((Version(1),), Version(2), keep=1),
    "one that replaces its step's": Situation((Version(1), Version(2)), Version(2, 1)),
}


@pytest.fixture(params=SITUATIONS.values(), ids=SITUATIONS)
def situation(request):
    return request.param


def save_counting(folder, situation, counter, report):
    counter.start()
    save(folder, situation.saved, keep=situation.keep)
    counter.counting = False
    report.write_text(json.dumps(counter.names))


def killed_at(tmp_path, situation, number, halfway=False):
    """Kill a save at its call of that number; return the folder, and the names of all calls when it was not reached."""
    run, report = tmp_path / f"{number}-{halfway}", tmp_path / "report.json"
    folder = situation.prepare(run)
    child = fork(tmp_path / "said", lambda: save_counting(folder, situation, Counter(number, halfway), report))
    ended = child.wait()
    assert ended.code == (0 if number < 0 else -signal.SIGKILL), ended.said
    return folder, json.loads(report.read_text()) if number < 0 else []


def test_a_kill_at_every_call(tmp_path, situation, tally):
    folder, names = killed_at(tmp_path, situation, -1)
    assert newest(folder) == situation.saved
    assert {"open", "write", "fsync", "os.mkdir", "os.rename"} <= set(names)
    cases = [(number, halfway) for number in range(0, len(names), EVERY) for halfway in (False, True)]
    cases = [(number, halfway) for number, halfway in cases if not halfway or names[number] == "write"]
    seen = []
    for number, halfway in cases:
        folder, _ = killed_at(tmp_path, situation, number, halfway)
        seen.append(newest(folder))
        assert seen[-1] in (situation.old, situation.saved), f"killed at call {number}, {names[number]}"
        for path in CheckpointStore(folder).checkpoints():
            found(path)
        save(folder, Version(3), keep=1)
        assert newest(folder) == Version(3) and len(list(folder.iterdir())) == 1
        shutil.rmtree(folder.parent)
    assert seen == sorted(seen, key=lambda version: version == situation.saved), "once it is there it stays"
    assert {*seen} == {situation.old, situation.saved}
    tally("kills at a call of a save", kills=len(cases), calls=len(names))


def losses_after(disk, tmp_path, seen):
    """Yield a folder for every different state that a disk may have after a loss of power."""
    for loss in LOSSES:
        tree = disk.after(loss)
        if repr(tree) not in seen:
            seen.add(repr(tree))
            shutil.rmtree(tmp_path / "lost", ignore_errors=True)
            write_tree(tree, tmp_path / "lost")
            yield tmp_path / "lost" / "checkpoints"


def test_a_loss_of_power_at_every_call(tmp_path, situation, tally):
    run = tmp_path / "run"
    folder = situation.prepare(run)
    disk = Disk(run)
    with Recorder(run) as calls:
        save(folder, situation.saved, keep=situation.keep)
    seen, states = set(), 0
    for call in calls:
        for lost in losses_after(disk, tmp_path, seen):
            states += 1
            assert newest(lost) in (situation.old, situation.saved), f"power lost before {call}"
        disk.call(call)
    assert disk.after(None) == Disk(run).after(None), "the record has everything that happened"
    for lost in losses_after(disk, tmp_path, set()):
        states += 1
        assert newest(lost) == situation.saved, "a save that is done is on the disk"
    tally("losses of power during a save", states=states, calls=len(calls))


def test_a_loss_of_power_while_a_resume_tidies_up(tmp_path, situation, tally):
    """After a kill at every call, at every call of what the resume does first."""
    folder = situation.prepare(tmp_path / "run")
    start = Disk(tmp_path / "run").after(None)
    with Recorder(tmp_path / "run") as calls:
        save(folder, situation.saved, keep=situation.keep)
    states, seen = 0, set()
    for number in range(0, len(calls) + 1, EVERY):
        again = tmp_path / f"again-{number}"
        write_tree(start, again)
        disk = Disk(again)
        shutil.rmtree(again)
        for call in calls[:number]:
            disk.call(call)
        write_tree(disk.after(None), again)
        with Recorder(again) as tidying:
            CheckpointStore(again / "checkpoints").tidy()
        for call in [*tidying, None]:
            for lost in losses_after(disk, tmp_path, seen):
                states += 1
                assert newest(lost) in (situation.old, situation.saved), (
                    f"killed before {calls[number:][:1]}, power lost before {call}"
                )
            if call is not None:
                disk.call(call)
    tally("losses of power while tidying", states=states)
