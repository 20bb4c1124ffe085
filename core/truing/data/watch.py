"""Notices files that change while a run reads them."""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

import attrs

from truing.errors import DataError


@attrs.frozen
class FileState:
    """What tells one version of a file from another."""

    size: int
    modified: int
    """Nanoseconds since 1970."""
    file: tuple[int, int]
    """Device and number, which differ for a file that was put in the place of another."""

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """Return the state of a file, or None where there is none; a pipe has none that lasts. Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, (found.st_dev, found.st_ino)) if stat.S_ISREG(found.st_mode) else None

    def __str__(self) -> str:
        return f"{self.size:,} bytes of {datetime.fromtimestamp(self.modified / 1e9):%Y-%m-%d %H:%M:%S.%f}"


@attrs.define
class Watch:
    """Files that are being read, each as it was when it was opened first."""

    _states: dict[Path, FileState | None] = attrs.field(factory=dict, init=False)

    def add(self, path: Path) -> None:
        """Take note of a file that is about to be read. Raises OSError."""
        if path not in self._states:
            self._states[path] = FileState.of(path)

    def changed(self) -> str | None:
        """Return what is no longer as it was, and what to do about it; None where all is."""
        for path, before in self._states.items():
            try:
                now = FileState.of(path)
            except OSError as error:
                return f"{path} cannot be found any more ({error.strerror}): it went while it was being read. {_ADVICE}"
            if now != before:
                return f"{path} changed while it was being read: it had {before}, and now has {now}. {_ADVICE}"
        return None

    def require_unchanged(self) -> None:
        """Raise DataError for a file that has changed, naming it."""
        problem = self.changed()
        if problem is not None:
            raise DataError(problem)


_ADVICE = "What was read may be of two versions; start again when nothing writes it"
