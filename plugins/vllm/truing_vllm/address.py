"""Where servers are, what they ask for, and the file in which a server's starter writes that down for the run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import psutil

from truing import ConfigError

FILE = "vllm-server.json"
"""In the run directory; core does not take it for something that a run left."""
TOKEN_VARIABLE = "TRUING_VLLM_TOKEN"


@attrs.frozen(kw_only=True)
class Address:
    """A server: `http(s)://host:port`, or the socket of `unix:/path`, and the token that it asks for."""

    url: str
    token: str | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.socket is not None:
            problem = None if self.socket.startswith("/") else "its path must begin with /"
        else:
            problem = _url_problem(self.url)
        if problem:
            raise ConfigError(
                f"rollout.server: {self.url!r} is no server's address: {problem}; write http://host:port or unix:/path"
            )

    @property
    def socket(self) -> str | None:
        """The path of its unix socket; None for one that is reached over TCP."""
        return self.url.removeprefix("unix:") if self.url.startswith("unix:") else None

    @property
    def base_url(self) -> str:
        """What paths are added to."""
        return "http://vllm" if self.socket is not None else self.url.rstrip("/")


def _url_problem(url: str) -> str | None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return f"the scheme is {parts.scheme or 'missing'}"
    if parts.username or parts.password:
        return "a token goes into rollout.token or the environment's TRUING_VLLM_TOKEN"
    try:
        if not parts.hostname or parts.port is None:
            return "the host or the port is missing"
    except ValueError as error:
        return str(error)
    return "nothing may follow the port" if parts.path.strip("/") or parts.query or parts.fragment else None


@attrs.frozen(kw_only=True)
class Entry:
    """A server as its starter wrote it down."""

    url: str
    token: str = attrs.field(repr=False)
    pid: int

    @property
    def alive(self) -> bool:
        """Whether the process that started it is there still."""
        return bool(psutil.pid_exists(self.pid))


def read_entries(run_dir: Path) -> list[Entry]:
    """Return the servers that were written down for a run; of starters that are gone, none."""
    try:
        found: Any = json.loads((run_dir / FILE).read_text())
        entries = [Entry(**entry) for entry in found["servers"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{run_dir / FILE} cannot be read ({error}); remove it, and start `truing vllm-serve` again") from error
    return [entry for entry in entries if entry.alive]


def require_free(run_dir: Path, url: str) -> list[Entry]:
    """Return the servers of a run. Raises ConfigError where one of them has that address."""
    entries = read_entries(run_dir)
    if any(entry.url == url for entry in entries):
        raise ConfigError(f"{url} is served for {run_dir} already; choose another rollout.serve.port or uds, or stop that one")
    return entries


@contextmanager
def written_down(run_dir: Path, entry: Entry) -> Iterator[Path]:
    """Have a server in the run's file, readable by this user alone, until the block ends.

    Raises ConfigError where a server of that address is there already.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with _locked(run_dir):
        others = require_free(run_dir, entry.url)
        _write(run_dir, [*others, entry])
    try:
        yield run_dir / FILE
    finally:
        with _locked(run_dir):
            _write(run_dir, [other for other in read_entries(run_dir) if other != entry])


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    descriptor = os.open(run_dir / f".{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(run_dir: Path, entries: Iterable[Entry]) -> None:
    draft = run_dir / f".{FILE}.draft"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"servers": [attrs.asdict(entry) for entry in entries]}, file)
    draft.replace(run_dir / FILE)
