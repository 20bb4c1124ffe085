"""Every call of a save to the file system: counted, interrupted by a kill, or recorded for a simulated loss of power.

What Python tells its audit hooks of, and what it does not: writing and syncing. Recording knows the calls that change something.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs

UNTOLD = ("write", "pwrite", "fsync", "fdatasync", "close")
"""Functions of os without an audit event."""
TOLD = ("open", "os.", "shutil.")
"""How the names of other calls' events begin."""


@attrs.define
class Counter:
    """Counts the calls of this process, and kills it before one of them."""

    kill_at: int = -1
    halfway: bool = False
    """Whether a write that is not to be survived writes half of its bytes first."""
    names: list[str] = attrs.field(factory=list)
    counting: bool = True

    def start(self) -> None:
        """Count from now on; there is no way back, so this is for a child."""
        sys.addaudithook(lambda event, arguments: self._reached(event) if event.startswith(TOLD) else None)
        for name in UNTOLD:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            if self.halfway and name == "write" and len(self.names) == self.kill_at:
                real(descriptor, rest[0][: len(rest[0]) // 2])
            self._reached(name)
            return real(descriptor, *rest)

        return call

    def _reached(self, name: str) -> None:
        if not self.counting:
            return
        if len(self.names) == self.kill_at:
            self.counting = False  # a kill is a call of os, too
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)


@attrs.frozen
class Call:
    """A call that changes something, with paths below the folder that is looked at."""

    name: str
    path: Path
    to: Path | None = None
    data: bytes = b""


@attrs.define
class Recorder:
    """Stands for functions of os, does what they do, and notes what changes something below a folder."""

    root: Path
    calls: list[Call] = attrs.field(factory=list)
    _opened: dict[int, Path] = attrs.field(factory=dict)
    _real: dict[str, Callable[..., Any]] = attrs.field(factory=dict)

    def __enter__(self) -> list[Call]:
        fakes: dict[str, Callable[..., Any]] = {"open": self._open, "write": self._write, "fsync": self._sync}
        fakes |= {"rename": self._rename, "replace": self._rename}
        fakes |= {name: partial(self._change, name) for name in ("mkdir", "unlink", "rmdir")}
        self._real = {name: getattr(os, name) for name in fakes}
        for name, fake in fakes.items():
            setattr(os, name, fake)
        return self.calls

    def __exit__(self, *exception: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)

    def _below(self, path: Any, folder: int | None = None) -> Path:
        return (self.root if folder is None else self.root / self._opened[folder]).joinpath(path).relative_to(self.root)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = self._below(path, dir_fd)
        new = bool(flags & os.O_CREAT) and not (self.root / where).exists()
        descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        self._opened[descriptor] = where
        if new:
            self.calls.append(Call("create", where))
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        written: int = self._real["write"](descriptor, data)
        if descriptor in self._opened:
            self.calls.append(Call("write", self._opened[descriptor], data=bytes(data[:written])))
        return written

    def _sync(self, descriptor: int) -> None:
        self._real["fsync"](descriptor)
        self.calls.append(Call("sync", self._opened[descriptor]))

    def _change(self, name: str, path: Any, *rest: Any, dir_fd: int | None = None) -> None:
        self._real[name](path, *rest, dir_fd=dir_fd)
        self.calls.append(Call(name, self._below(path, dir_fd)))

    def _rename(self, path: Any, to: Any) -> None:
        self._real["rename"](path, to)
        self.calls.append(Call("rename", self._below(path), self._below(to)))
