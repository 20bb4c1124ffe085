"""A disk that loses power: what was not synced may be there, or not, or in part."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.faults.filesystem import Call

Tree = dict[str, "bytes | Tree"]
"""What a disk has after the loss, by name."""


@attrs.define(eq=False)
class File:
    """Its contents as programs see them, and as much as the disk is sure to have."""

    data: bytes = b""
    synced: bytes = b""


@attrs.define(eq=False)
class Folder:
    """Its entries as programs see them, those that the disk is sure to have, and the changes between, which it makes in order."""

    entries: dict[str, File | Folder] = attrs.field(factory=dict)
    synced: dict[str, File | Folder] = attrs.field(factory=dict)
    pending: list[dict[str, File | Folder | None]] = attrs.field(factory=list)
    """Each says what names are from then on; None where there is none."""

    def change(self, **names: File | Folder | None) -> None:
        """Make a change that is not synced yet."""
        self.pending.append(names)
        _apply(self.entries, names)

    def sync(self) -> None:
        """Let the disk have all entries."""
        self.synced, self.pending = dict(self.entries), []


def _apply(entries: dict[str, File | Folder], names: dict[str, File | Folder | None]) -> None:
    for name, node in names.items():
        if node is None:
            del entries[name]
        else:
            entries[name] = node


@attrs.frozen
class Loss:
    """What becomes of what was not synced. A disk may order changes of different folders, and files' contents, as it likes."""

    changes: float | None = None
    """The share of each folder's changes that are made; None draws one for each."""
    data: float | None = None
    """The share of each file's unsynced bytes that are there; None draws 0, a half or 1 for each."""
    seed: int = 0


LOSSES = [Loss(changes, data) for changes in (0.0, 1.0) for data in (0.0, 0.5)] + [Loss(seed=seed) for seed in range(24)]


class Disk:
    """The folder that a test looks at, as a disk has it."""

    def __init__(self, root: Path) -> None:
        self.top = _read(root)

    def call(self, call: Call) -> None:
        """Do what a call did."""
        folder, name = self._folder(call.path.parent), call.path.name
        if call.name in ("create", "mkdir"):
            folder.change(**{name: File() if call.name == "create" else Folder()})
        elif call.name in ("unlink", "rmdir"):
            folder.change(**{name: None})
        elif call.name == "rename":
            assert call.to is not None and call.to.parent == call.path.parent
            folder.change(**{name: None, call.to.name: folder.entries[name]})
        elif call.name == "write":
            self._file(call.path).data += call.data
        else:
            assert call.name == "sync"
            node = self._folder(call.path.parent).entries[name] if name else self.top
            if isinstance(node, File):
                node.synced = node.data
            else:
                node.sync()

    def after(self, loss: Loss | None) -> Tree:
        """Return what is there after a loss of power; without one, what programs see."""
        draw = random.Random(None if loss is None else loss.seed)
        return dict(_survivors(self.top, loss, draw))

    def _folder(self, path: Path) -> Folder:
        node: File | Folder = self.top
        for part in path.parts:
            assert isinstance(node, Folder)
            node = node.entries[part]
        assert isinstance(node, Folder)
        return node

    def _file(self, path: Path) -> File:
        node = self._folder(path.parent).entries[path.name]
        assert isinstance(node, File)
        return node


def _read(path: Path) -> Folder:
    entries: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        entries[entry.name] = _read(entry) if entry.is_dir() else File(entry.read_bytes(), entry.read_bytes())
    return Folder(entries, dict(entries))


def _survivors(folder: Folder, loss: Loss | None, draw: random.Random) -> Iterator[tuple[str, bytes | Tree]]:
    entries = dict(folder.synced)
    share = 1.0 if loss is None else draw.random() if loss.changes is None else loss.changes
    for names in folder.pending[: round(share * len(folder.pending))]:
        _apply(entries, names)
    for name, node in entries.items():
        if isinstance(node, Folder):
            yield name, dict(_survivors(node, loss, draw))
            continue
        share = 1.0 if loss is None else draw.choice((0.0, 0.5, 1.0)) if loss.data is None else loss.data
        unsynced = node.data[len(node.synced) :]
        yield name, node.synced + unsynced[: round(share * len(unsynced))]


def write_tree(tree: Tree, path: Path) -> None:
    """Write what a disk has into a new folder."""
    path.mkdir(parents=True)
    for name, node in tree.items():
        if isinstance(node, bytes):
            (path / name).write_bytes(node)
        else:
            write_tree(node, path / name)
