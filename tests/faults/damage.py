"""What can happen to a file of a checkpoint: each kind of damage as a function of the file, and of what else is there."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

BLOCK = 512
"""Bytes that a disk loses at once."""

Harm = Callable[[Path, Path, Random], None]
"""Takes the file, a checkpoint of an earlier step, and a source of chance."""


def truncated(file: Path, older: Path, draw: Random) -> None:
    """A part is missing at the end."""
    os.truncate(file, draw.randrange(1, file.stat().st_size))


def emptied(file: Path, older: Path, draw: Random) -> None:
    """Nothing is in it."""
    os.truncate(file, 0)


def deleted(file: Path, older: Path, draw: Random) -> None:
    """It is gone."""
    file.unlink()


def extended(file: Path, older: Path, draw: Random) -> None:
    """Something is behind its end."""
    with file.open("ab") as stream:
        stream.write(draw.randbytes(draw.randrange(1, 100)))


def flipped(file: Path, older: Path, draw: Random) -> None:
    """One bit is another."""
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def zeroed(file: Path, older: Path, draw: Random) -> None:
    """A block has only zeros."""
    data = bytearray(file.read_bytes())
    start = BLOCK * draw.randrange(-(-len(data) // BLOCK))
    data[start : start + BLOCK] = bytes(len(data[start : start + BLOCK]))
    file.write_bytes(data)


def swapped(file: Path, older: Path, draw: Random) -> None:
    """It has the contents of another file of the checkpoint, and that one its own."""
    other = draw.choice([path for path in sorted(file.parent.iterdir()) if path.read_bytes() != file.read_bytes()])
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


def outdated(file: Path, older: Path, draw: Random) -> None:
    """It is that of an earlier checkpoint."""
    shutil.copyfile(older / file.name, file)


def linked(file: Path, older: Path, draw: Random) -> None:
    """It is a link to a file outside that has the right contents."""
    outside = file.parents[3] / f"outside-{file.name}"
    file.rename(outside)
    file.symlink_to(outside)


def a_folder(file: Path, older: Path, draw: Random) -> None:
    """It is a folder."""
    file.unlink()
    file.mkdir()


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.proof}",)


def pickled(file: Path, older: Path, draw: Random) -> None:
    """It is a pickle that leaves a proof when it is read as one."""
    file.write_bytes(pickle.dumps(Malicious(file.parents[3] / "proof")))


def a_pipe(file: Path, older: Path, draw: Random) -> None:
    """Reading it never ends."""
    file.unlink()
    os.mkfifo(file)


def forbidden(file: Path, older: Path, draw: Random) -> None:
    """Nobody may read it; root may all the same."""
    file.chmod(0)


HARMS: Mapping[str, Harm] = {
    harm.__name__: harm
    for harm in (
        *(truncated, emptied, deleted, extended, flipped, zeroed, swapped, outdated),
        *(linked, a_folder, pickled, a_pipe, forbidden),
    )
}
