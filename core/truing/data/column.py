"""A column of numbers that grows at its end, in memory at first and then on disk."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from truing.data.paths import cache_folder
from truing.errors import SetupError

MEMORY = 2**26
"""Bytes that a column has in memory before it goes to disk."""


class Column:
    """Numbers of one type, by `array`'s code for it; what is beyond `MEMORY` lies in a file without a name, which goes with it.

    The system keeps of the file in memory what is in use, so that data may be larger than memory. Raises SetupError where the disk,
    that of `TRUING_CACHE`, does not take it.
    """

    def __init__(self, code: str, values: Iterable[Any] = ()) -> None:
        self._recent = array(code, values)
        self._file: IO[bytes] | None = None
        self._written = 0
        self._view: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._written + len(self._recent)

    def append(self, value: Any) -> None:
        """Add a number."""
        self.extend((value,))

    def extend(self, values: Iterable[Any]) -> None:
        """Add numbers."""
        self._recent.extend(values)
        self._view = None
        if len(self._recent) * self._recent.itemsize > MEMORY:
            self._spill()

    def _spill(self) -> None:
        folder = cache_folder()
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = _nameless_file(folder)
            self._file.write(self._recent)
            self._file.flush()
        except OSError as error:
            raise SetupError(
                f"the data is larger than what is kept in memory, and {folder} does not take it ({error.strerror or error}); set "
                "TRUING_CACHE to a folder with space that can be written"
            ) from error
        self._written += len(self._recent)
        del self._recent[:]

    @property
    def numbers(self) -> NDArray[Any]:
        """All of them, one after the other."""
        if self._view is None:
            if self._file is not None:
                self._spill()
            dtype = np.dtype(self._recent.typecode)
            # the view of an array that still grows would keep it from growing
            self._view = np.array(self._recent) if self._file is None else np.memmap(self._file, dtype=dtype, mode="r")
        return self._view


def _nameless_file(folder: Path) -> IO[bytes]:
    """Return a file that is gone as soon as nothing holds it open."""
    return tempfile.TemporaryFile(dir=folder)
