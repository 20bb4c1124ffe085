"""One of several processes that train, save and resume with weights spread over them; run by torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.end_to_end.steps import make_run, shard
from truing.train.loop import _finish
from truing.train.optimizer import make_optimizer, make_schedule
from truing.train.run import Run
from truing.train.saving import Saver, restore
from truing.train.step import train_step


def make_sharded(place: Path, output: str, method: str) -> Run:
    """Return a run whose weights and optimiser are this rank's part."""
    run = shard(make_run(place, output, method=method, dtype="float32", batch_size=4, max_steps=4))
    optimizer = run.accelerator.prepare(make_optimizer(run.policy, run.trainer))
    run.state.optimizer, run.state.scheduler = optimizer, make_schedule(optimizer, run.trainer, 4)
    return run


def train(run: Run, steps: int) -> list[float]:
    """Train, and return the sum of each weight's part on this rank, to the last bit."""
    for _ in range(steps):
        train_step(run)
        run.state.step += 1
    return [float(part.double().sum()) for part in run.state.weights().values()]


if __name__ == "__main__":
    place, method = Path(sys.argv[1]), sys.argv[2]
    one = make_sharded(place, "one", method)
    train(one, 2)
    path = Saver(one).save(wait=True)
    unbroken = train(one, 2)
    two = make_sharded(place, "two", method)
    train(two, 1)  # what is taken over must not depend on what was there
    restore(two, path)
    assert two.state.step == 2
    resumed = train(two, 2)
    _finish(one)
    if one.accelerator.is_main_process:
        found = {"unbroken": unbroken, "resumed": resumed, "files": [file.name for file in path.iterdir()]}
        (place / "found.json").write_text(json.dumps(found))
    one.accelerator.wait_for_everyone()
    os._exit(0)  # gloo's threads may still run when the interpreter takes itself apart, which aborts it now and then
