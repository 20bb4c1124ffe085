"""Between a run and its checkpoints: saving the state of every rank, and going on from one."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from truing.errors import ConfigError
from truing.train.checkpoint import (
    damage,
    list_checkpoints,
    load_checkpoint,
    put_aside_after,
    require_same_run,
    save_checkpoint,
)
from truing.train.run import Run
from truing.train.state import random_state, restore_random_state


def save(run: Run) -> Path:
    """Write a checkpoint of the state, with the random generators of every rank, and return its path."""
    ranks = gather_object([random_state()])
    if run.accelerator.is_main_process:
        save_checkpoint(
            run.run_dir.checkpoints,
            run.state.step,
            {**run.state.numbers(), "random": [numbers for numbers, _ in ranks]},
            {**run.state.tensors(), **{f"random-{rank}": tensors for rank, (_, tensors) in enumerate(ranks)}},
            identity=run.identity,
            keep=run.trainer.save_total_limit,
        )
    run.accelerator.wait_for_everyone()
    return run.run_dir.checkpoints / f"step-{run.state.step:08d}"


def restore(run: Run, path: Path | None) -> None:
    """Take over the newest whole checkpoint, or the one at `path`; later ones are put aside, for the run takes its own course.

    Raises ConfigError when the one at `path` is damaged, or when the checkpoint belongs to another run or to a longer one.
    """
    for candidate in [path] if path is not None else reversed(list_checkpoints(run.run_dir.checkpoints)):
        problem = damage(candidate)
        if problem is None:
            require_same_run(candidate, run.identity)
            _load(run, candidate)
            if run.state.step > run.total_steps:
                raise ConfigError(
                    f"{candidate} is of step {run.state.step}, and this run has {run.total_steps} steps; raise trainer.num_epochs "
                    "or trainer.max_steps, or resume from an earlier one (--resume CHECKPOINT)"
                )
            run.reporter.say(f"resumed from {candidate}: {run.state.step} of {run.total_steps} steps done")
            break
        if path is not None:
            raise ConfigError(f"{candidate} cannot be resumed: {problem}; name another, or none for the newest whole one")
        run.reporter.warn(f"{candidate} is damaged: {problem}; trying the one before it")
    else:
        run.reporter.say(f"no checkpoint in {run.run_dir.checkpoints}: starting from the first step")
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        put_aside_after(run.run_dir.checkpoints, run.state.step)
        run.run_dir.rewrite_metrics(run.state.history)


def _load(run: Run, path: Path) -> None:
    numbers, tensors = load_checkpoint(path)
    run.state.load(numbers, tensors)
    run.state.tokens_per_batch = run.trainer.max_tokens_per_batch or run.state.tokens_per_batch
    rank = run.accelerator.process_index % len(numbers["random"])  # more ranks than before cannot all go on where one was
    restore_random_state(numbers["random"][rank], tensors[f"random-{rank}"])
