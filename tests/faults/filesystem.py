"""Every call of a save to the file system: counted, interrupted by a kill, or recorded for a simulated loss of power.

What Python tells its audit hooks of, and what it does not: writing and syncing. Recording knows the calls that change something.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def recorded(root: Path) -> Iterator[list[Call]]:  # noqa: C901  # one small function for each call that it stands in for
    """Record the calls of os that change something below a folder."""
    calls: list[Call] = []
    opened: dict[int, Path] = {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "mkdir", "unlink", "rmdir", "rename", "replace")}

    def below(path: Any, folder: int | None) -> Path:
        return (root if folder is None else root / opened[folder]).joinpath(path).relative_to(root)

    def open_file(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = below(path, dir_fd)
        new = bool(flags & os.O_CREAT) and not (root / where).exists()
        descriptor: int = real["open"](path, flags, mode, dir_fd=dir_fd)
        opened[descriptor] = where
        if new:
            calls.append(Call("create", where))
        return descriptor

    def write(descriptor: int, data: Any) -> int:
        written: int = real["write"](descriptor, data)
        if descriptor in opened:
            calls.append(Call("write", opened[descriptor], data=bytes(data[:written])))
        return written

    def sync(descriptor: int) -> None:
        real["fsync"](descriptor)
        calls.append(Call("sync", opened[descriptor]))

    def change(name: str) -> Callable[..., None]:
        def call(path: Any, *rest: Any, dir_fd: int | None = None) -> None:
            real[name](path, *rest, dir_fd=dir_fd)
            calls.append(Call(name, below(path, dir_fd)))

        return call

    def rename(path: Any, to: Any) -> None:
        real["rename"](path, to)
        calls.append(Call("rename", below(path, None), below(to, None)))

    fakes = {"open": open_file, "write": write, "fsync": sync, "rename": rename, "replace": rename}
    fakes |= {name: change(name) for name in ("mkdir", "unlink", "rmdir")}
    try:
        for name, fake in fakes.items():
            setattr(os, name, fake)
        yield calls
    finally:
        for name, function in real.items():
            setattr(os, name, function)
