"""One save at a time beside the training thread, and copies of the state that it reads while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from truing.model.memory import free_bytes
from truing.train.checkpoint.tensors import bytes_of

Tables = Mapping[str, Mapping[str, Tensor]]
ROOM = 2
"""Copies are made while so many times their size is free."""


class Save:
    """A save that runs on a thread of its own, which ends with the process whatever it does."""

    def __init__(self, work: Callable[[Callable[[], bool]], Path], what: str) -> None:
        """Start `work`, which is handed a function that says whether the save was given up: what it reads may have changed then."""
        self.what = what
        self._given_up = False
        self._work = work
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="truing-save", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._path = self._work(lambda: self._given_up)
        except BaseException as error:  # handed to whoever waits for it
            self._error = error

    @property
    def running(self) -> bool:
        """Whether it still writes."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Return when it has ended, or when time is up, having given it up."""
        if not self._given_up:
            self._thread.join(seconds)
            self._given_up = self._thread.is_alive()

    def result(self, seconds: float) -> Path:
        """Return the checkpoint's path when it is written. Raises what the save raised, or TimeoutError when time is up."""
        self.wait(seconds)
        if self._given_up:
            raise TimeoutError(f"{self.what} was not written within {seconds:g} s")
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path


class Snapshot:
    """Copies of the state on the CPU, in memory that is used again for the next save: fresh memory costs more than the copy."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}

    def fits(self, tables: Tables) -> bool:
        """Whether there is memory for the copies, or it is held already."""
        needed = sum(map(bytes_of, tables.values())) - sum(bytes_of({"": tensor}) for tensor in self._memory.values())
        return needed <= 0 or free_bytes(torch.device("cpu")) > ROOM * needed

    def of(self, tables: Tables) -> dict[str, dict[str, Tensor]]:
        """Return the same tables with copies; those of an earlier call are overwritten."""
        return {file: {name: self._copy(file, name, tensor) for name, tensor in table.items()} for file, table in tables.items()}

    def _copy(self, file: str, name: str, tensor: Tensor) -> Tensor:
        held = self._memory.get((file, name))
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = self._memory[file, name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return held.copy_(tensor.detach())
