"""Processes that a launcher starts again because one of their run was lost."""

from __future__ import annotations

import os

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


def was_restarted() -> bool:
    """Whether this process is such a one: it goes on where the checkpoints say."""
    return _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_restarted() -> None:
    """Make the process group of restarted processes, before accelerate does.

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
    )
