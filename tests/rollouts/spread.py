"""`truing train` with weights spread over processes; run by torchrun on CPUs, over which accelerate does not spread them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.end_to_end.steps import shard
from truing.config import load_config
from truing.registry import Registry
from truing.train import loop
from truing.train.optimizer import make_optimizer, make_schedule
from truing.train.run import Run
from truing.train.setup import set_up


def set_up_spread(*arguments, **named) -> Run:
    """Return the run with its weights and its optimiser spread over the ranks."""
    run = shard(set_up(*arguments, **named))
    run.state.optimizer = run.accelerator.prepare(make_optimizer(run.policy, run.trainer))
    run.state.scheduler = make_schedule(run.state.optimizer, run.trainer, run.total_steps)
    return run


if __name__ == "__main__":
    loop.set_up = set_up_spread
    loop.train(load_config(Path(sys.argv[1]), sys.argv[2:], registry=Registry.load()))
    os._exit(0)  # gloo's threads may still run when the interpreter takes itself apart, which aborts it now and then
