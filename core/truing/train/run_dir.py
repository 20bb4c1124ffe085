"""The run directory: what a run leaves behind."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs

import truing
from truing.errors import ConfigError, SetupError, TruingError, system_error
from truing.redact import redacted
from truing.train.checkpoint.files import Seal, make_folder, replace_file, shortfall, size_of_folder, sync_folder
from truing.train.checkpoint.store import CheckpointStore

CONFIG, ENVIRONMENT, METRICS, LOCK = "config.yaml", "environment.json", "metrics.jsonl", ".lock"
LAUNCH = ".launch"
"""The launch of several processes that began the run, by which one of its restarts knows it."""
COMPLETIONS = "completions.jsonl"
LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""What JSON may hold as it is and many readers take for the end of a line, in its escaped form."""
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of what a run's numbers may depend on, Truing's own first."""
    return {"truing": truing.__version__, **{name: importlib.metadata.version(name) for name in LIBRARIES}}


@attrs.define
class RunDir:
    """Paths of a run directory, and writing into them; one process at a time may write."""

    path: Path
    _lock: int | None = attrs.field(default=None, init=False)
    """Descriptor of the file that is locked."""
    _unwritten: dict[str, list[str]] = attrs.field(factory=dict, init=False)
    """By file, lines that the disk would not take yet."""
    kept_weights: dict[str, Seal] = attrs.field(factory=dict, init=False)
    """Name and seal of the weights that this process kept last for a step that was left out."""

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.path / "model"

    @property
    def store(self) -> CheckpointStore:
        """The checkpoints."""
        return CheckpointStore(self.checkpoints)

    @property
    def skipped(self) -> Path:
        """The folder of the steps that were left out."""
        return self.path / "skipped"

    def claim(self, *, resume: bool) -> None:
        """Make the directory and keep other processes from writing there until `close`.

        Raises ConfigError when another run left something there or is still running, SetupError when it cannot be written.
        """
        if not resume and any(path.exists() for path in (self.path / METRICS, self.checkpoints, self.model)):
            self._require_no_owner()
            raise ConfigError(
                f"output.dir: {self.path} holds another run; continue it with --resume, or choose another directory "
                f"(output.dir={self.path}-2)"
            )
        try:
            make_folder(self.path)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise SetupError(f"output.dir: {self.path} cannot be written: {error.strerror}; choose another output.dir") from error
        self._lock = self._locked()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
        self.store.tidy()

    def close(self) -> None:
        """Let other processes write there; the end of the process does so too, however it comes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def owner(self) -> str | None:
        """Return the process that writes there now, as it called itself; None where there is none."""
        if not (self.path / LOCK).exists():
            return None
        with (self.path / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(100).strip() or "unknown"
            except OSError:  # a file system without locks
                return None
        return None

    def _require_no_owner(self) -> None:
        owner = self.owner()
        if owner is not None:
            raise self._owned_by(owner)

    def _locked(self) -> int:
        """Return the descriptor of the lock file, locked. Raises ConfigError, naming the process that has it."""
        file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise self._owned_by(self.owner() or "unknown") from error
        except OSError:  # a file system without locks: nothing to do but trust the user
            pass
        return file

    def _owned_by(self, owner: str) -> ConfigError:
        return ConfigError(
            f"output.dir: process {owner} is writing to {self.path}; wait for it or stop it, or choose another directory "
            f"(output.dir={self.path}-2)"
        )

    def launch(self) -> str | None:
        """Return the launch of several processes that began what is here, or went on with it; None where it was one process."""
        path = self.path / LAUNCH
        return path.read_text() if path.exists() else None

    def begin(self, launch: str | None) -> None:
        """Note the launch that the run is now one of."""
        (self.path / LAUNCH).unlink(missing_ok=True)
        if launch is not None:
            (self.path / LAUNCH).write_text(launch)

    def require_space(self, needed: int) -> None:
        """Raise SetupError when the disk has less than `needed` bytes free."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise SetupError(
                f"{self.path}: the model and a checkpoint need {needed / 1e6:,.0f} MB, the disk has {free / 1e6:,.0f} MB free; "
                "free some space, or choose another output.dir"
            )

    def write_config(self, text: str) -> None:
        """Write the resolved configuration. Raises SetupError."""
        self._replace(CONFIG, text.encode())

    def write_environment(self, **facts: Any) -> None:
        """Write what the run depended on: versions, machine, and the given facts. Raises SetupError."""
        environment = {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "libraries": library_versions(),
            **facts,
        }
        self._replace(ENVIRONMENT, json.dumps(redacted(environment), indent=1, default=str).encode() + b"\n")

    def append_metrics(self, line: Mapping[str, float]) -> OSError | None:
        """Add a line to metrics.jsonl, and those that the disk would not take before; return the error where it still does not."""
        return self._append(METRICS, [line])

    def append_completions(self, lines: Sequence[Mapping[str, Any]]) -> OSError | None:
        """Add lines to completions.jsonl, as `append_metrics` does."""
        return self._append(COMPLETIONS, lines)

    def _append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> OSError | None:
        unwritten = self._unwritten.setdefault(name, [])
        if not unwritten and not lines:
            return None
        unwritten.extend(json.dumps(line, ensure_ascii=False).translate(LINE_ENDS) + "\n" for line in lines)
        data = "".join(unwritten).encode(errors="replace")
        try:
            with (self.path / name).open("ab", buffering=0) as file:
                end = file.tell()
                written = file.write(data) or 0
                if written < len(data):
                    file.truncate(end)
                    raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError as error:
            return error
        unwritten.clear()
        return None

    def completions_bytes(self) -> int:
        """Return how long completions.jsonl is, having tried once more to write what the disk would not take."""
        self._append(COMPLETIONS, ())
        path = self.path / COMPLETIONS
        return path.stat().st_size if path.exists() else 0

    def cut_completions(self, size: int) -> None:
        """Make completions.jsonl what it was at a checkpoint, so long. Raises SetupError where the disk does not take it."""
        path = self.path / COMPLETIONS
        try:
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)
        except OSError as error:
            raise SetupError(
                f"{path} cannot be written: {error.strerror or error}; mend the disk, and go on with --resume"
            ) from error

    def metrics(self) -> bytes:
        """Return metrics.jsonl as it is."""
        path = self.path / METRICS
        return (path.read_bytes() if path.exists() else b"") + "".join(self._unwritten.get(METRICS, ())).encode()

    def rewrite_metrics(self, data: bytes) -> None:
        """Make metrics.jsonl what it was at a checkpoint; lines after the one that a run resumes from go. Raises SetupError."""
        self._replace(METRICS, data)

    def _replace(self, name: str, data: bytes) -> None:
        try:
            replace_file(self.path / name, [data])
        except OSError as error:
            raise SetupError(
                f"{self.path / name} cannot be written: {error.strerror or error}; the checkpoints are as they were. Free space "
                "or mend the disk, and go on with --resume"
            ) from error

    def replace_model(self, write: Callable[[Path], None], sizes: Sequence[int]) -> None:
        """Make the model's folder what `write` puts into the one that it is given, whole or not at all.

        `sizes` are about how many bytes its large files have. Raises TruingError where the disk does not take them.
        """
        draft = self.path / ".writing-model"
        try:
            self._replace_model(write, draft)
        except Exception as error:
            refused = system_error(error)
            if refused is None:
                raise
            written = size_of_folder(draft)
            shutil.rmtree(draft, ignore_errors=True)
            short = shortfall(refused, sizes, written, self.path)
            raise TruingError(
                f"{self.model} cannot be written: {refused.strerror}{short}; the checkpoints are as they were. Free space or mend "
                "the disk, and go on with --resume"
            ) from error

    def _replace_model(self, write: Callable[[Path], None], draft: Path) -> None:
        old = self.path / ".replaced-model"
        for path in (draft, old):
            shutil.rmtree(path, ignore_errors=True)
        write(draft)
        for path in draft.rglob("*"):
            if path.is_dir():
                sync_folder(path)
                continue
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(draft)
        if self.model.exists():
            self.model.rename(old)
        draft.rename(self.model)
        sync_folder(self.path)
        shutil.rmtree(old, ignore_errors=True)
