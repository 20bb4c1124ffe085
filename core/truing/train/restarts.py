"""Processes that a launcher starts again because one of their run was lost."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from truing.train.run_dir import RunDir


def was_restarted() -> bool:
    """Whether this process is such a one."""
    return _attempt() > 0


def launch() -> str | None:
    """Return what is the same in all attempts of one launch, and in no other launch; None where there is no launcher."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <made anew for every launch>/attempt_0/<rank>/error.json
    return str(Path(file).parents[2]) if file else os.environ.get("TORCHELASTIC_RUN_ID")


def has_begun(run_dir: RunDir) -> bool:
    """Whether an earlier attempt of this launch began the run that the directory holds."""
    return was_restarted() and run_dir.launch() == launch()


def resumed_from(run_dir: RunDir, resume: bool | str | Path) -> bool | str | Path:
    """Return what the run goes on from, on all processes: what was asked for, or what an earlier attempt of this launch saved."""
    found = (has_begun(run_dir), bool(run_dir.store.checkpoints()))
    begun, saved = gather_object([found])[0]  # the first process has the directory
    if not begun:
        return resume
    return True if saved else resume or True


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_restarted(timeout: timedelta) -> None:
    """Make the process group of restarted processes, which wait so long for each other, before accelerate does.

    The launcher's store outlives a restart, with the addresses of the processes that are gone in it; each attempt gets a part
    of its own. Nothing happens in processes that were not restarted.
    """
    if not was_restarted() or distributed.is_initialized():
        return
    store, rank, ranks = next(iter(rendezvous("env://")))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        backend="nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"attempt-{_attempt()}", store),
        rank=rank,
        world_size=ranks,
        timeout=timeout,
    )
