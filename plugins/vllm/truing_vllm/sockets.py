"""The path of a unix socket, which one server at a time has."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truing import ConfigError

_CONNECT_SECONDS = 2.0


@contextmanager
def held_socket(path: Path) -> Iterator[None]:
    """Have a socket's path for one server until the block ends; what a server that is gone left there is removed.

    Raises ConfigError where the path cannot be a socket's, its folder is not this user's alone, or another server has it.
    """
    path = path.expanduser().absolute()
    _require_private(path.parent)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, path)
        if path.exists() and not path.is_socket():
            raise ConfigError(f"rollout.serve.uds: {path} is there and is no socket; choose another path, or remove it")
        if _answers(path):
            raise _taken(path)
        path.unlink(missing_ok=True)
        try:
            yield
        finally:
            if path.is_socket() and not _answers(path):
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _require_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ConfigError(f"rollout.serve.uds: {folder} cannot be made: {error.strerror}; choose another folder") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"rollout.serve.uds: others may look into {folder}; put the socket into a folder of its own, with mode 0700"
        )


def _lock(descriptor: int, path: Path) -> None:
    try:  # while a server starts its socket is there and does not answer, so that asking it is not enough
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _taken(path) from error


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"rollout.serve.uds: a server has the socket {path} already; choose another path, or stop that server")


def _answers(path: Path) -> bool:
    """Return whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (BlockingIOError, TimeoutError):  # so many wait there that it takes no more
            return True
        except OSError as error:
            raise ConfigError(f"rollout.serve.uds: {path} cannot be used: {error}; choose another path") from error
    return True
