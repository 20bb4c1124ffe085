"""Twenty thousand steps: memory, open files and threads are those of the beginning."""

from __future__ import annotations

import json
import statistics

import psutil
import pytest

from tests.faults.inject import in_every_step
from tests.faults.runs import SMALLEST, Tiny
from tests.faults.sizes import FULL

STEPS, SAVES, EVERY = (20_000, 500, 100) if FULL else (300, 50, 10)
"""Steps, and those between two checkpoints and between two measurements."""
WARM = STEPS // 10
MOST_SLOPE = 1.0
"""Megabytes per 1,000 steps."""


def measure(samples, step):
    """Note resident bytes, descriptors and threads, just before a save, when that before it has long ended."""
    if (step + 1) % EVERY == 0:
        process = psutil.Process()
        samples.append([step + 1, process.memory_info().rss, process.num_fds(), process.num_threads()])


def soak(report):
    """Measure in every step, and write it to a file at the end."""
    samples = []

    def look(run):
        measure(samples, run.state.step)
        if run.state.step == STEPS - 1:
            report.write_text(json.dumps(samples))

    in_every_step(look)


@pytest.mark.timeout(1500)
def test_nothing_grows(tmp_path, tally):
    tiny = Tiny.make(tmp_path / "assets", model=SMALLEST, batch_size=1, logging_steps=10, save_steps=SAVES, save_total_limit=2)
    report = tmp_path / "report.json"
    child = tiny.start(tmp_path / "run", f"trainer.max_steps={STEPS}", before=lambda: soak(report))
    ended = child.wait(1400)
    assert ended.code == 0, ended.said
    samples = [sample for sample in json.loads(report.read_text()) if sample[0] > WARM]
    steps, resident, descriptors, threads = zip(*samples, strict=True)
    assert len(steps) == (STEPS - WARM) // EVERY
    assert max(threads) - min(threads) <= 1, "a save has a thread while it writes"
    assert min(descriptors) == min(descriptors[:3]) and max(descriptors) - min(descriptors) <= 2, (
        "a save has a file open, and its folder"
    )
    assert descriptors[-1] <= descriptors[0] and threads[-1] <= threads[0]
    slope = statistics.linear_regression(steps, resident).slope * 1000 / 1e6
    if FULL:
        assert slope < MOST_SLOPE, f"{slope:.2f} MB per 1,000 steps"
    half = len(steps) // 2
    later = statistics.linear_regression(steps[half:], resident[half:]).slope * 1000 / 1e6
    tally(
        "steps of one run",
        steps=STEPS,
        saves=STEPS // SAVES,
        **{"MB per 1,000 steps": round(slope, 3), "in the second half": round(later, 3)},
    )
