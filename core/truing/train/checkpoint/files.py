"""Files that are on the disk, whole, before anything refers to them."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import xxhash

Chunk = bytes | memoryview
PIECE = 8 << 20
"""Bytes that are hashed and written at a time."""


@attrs.frozen
class Seal:
    """What a file must be for its contents to be those that were written."""

    bytes: int = attrs.field(validator=attrs.validators.instance_of(int))
    xxh3_128: str = attrs.field(validator=attrs.validators.instance_of(str))


def write_file(path: Path, chunks: Iterable[Chunk]) -> Seal:
    """Write a new file, hash what is written, and return when the disk has it. Raises OSError."""
    digest, size = xxhash.xxh3_128(), 0
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in _pieces(chunks):
            digest.update(piece)
            size += len(piece)
            while piece:
                piece = piece[os.write(file, piece) :]
        os.fsync(file)
    finally:
        os.close(file)
    return Seal(size, digest.hexdigest())


def _pieces(chunks: Iterable[Chunk]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        yield from (view[start : start + PIECE] for start in range(0, len(view), PIECE))


def replace_file(path: Path, chunks: Iterable[Chunk]) -> Seal:
    """Make a file have these contents, whole or not at all, and return their seal. Raises OSError."""
    draft = path.with_name(f".writing-{path.name}")
    draft.unlink(missing_ok=True)
    try:
        seal = write_file(draft, chunks)
        draft.replace(path)
    except OSError:
        with suppress(OSError):  # the next one tries again
            draft.unlink(missing_ok=True)
        raise
    return seal


def seal_of(path: Path) -> Seal:
    """Return the seal of the file as it is now."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return Seal(size, digest.hexdigest())


def make_folder(path: Path) -> None:
    """Make a folder where there is none, and return when the disk has its name and those of the folders above that were missing."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Return when the disk has the names of a folder's files."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_plain_file(path: Path) -> bool:
    """Whether it is a file itself and not a link to one, a folder or a device."""
    return stat.S_ISREG(path.lstat().st_mode)


def size_of_folder(path: Path) -> int:
    """Return the bytes of all files in a folder and those below it; of what vanishes meanwhile, nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except OSError:
                continue
    return total


def shortfall(error: OSError, sizes: Sequence[int], written: int, folder: Path) -> str:
    """Return in words how many bytes were lacking for files of these sizes, which are gone by now; nothing where it is not that."""
    needed = sum(sizes)
    if error.errno == errno.ENOSPC:
        lacking = needed - shutil.disk_usage(folder).free
    elif error.errno == errno.EDQUOT:
        lacking = needed - written
    elif error.errno == errno.EFBIG:
        lacking = max(sizes) - resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    else:
        return ""
    # what others write and free meanwhile makes this an estimate
    return f" (it needs {needed:,} bytes, about {max(lacking, 1):,} more than there were)"
