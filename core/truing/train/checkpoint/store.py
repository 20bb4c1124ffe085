"""The checkpoints of a run: written beside their place, sealed, renamed; a kill at any instant leaves them whole or absent."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from truing.errors import TruingError
from truing.train.checkpoint.files import Seal, make_folder, shortfall, size_of_folder, sync_folder, write_file
from truing.train.checkpoint.manifest import MANIFEST, DamagedError, Manifest, step_of, verify

if TYPE_CHECKING:
    from torch import Tensor

_DRAFT, _REPLACED, _SUPERSEDED, _DELETED = ".writing-", ".replaced-", ".superseded-", ".deleted-"


class CheckpointError(TruingError):
    """A checkpoint cannot be written, and those before it are as they were; or none of those that there are can be resumed."""


@attrs.frozen(eq=False, kw_only=True)
class Contents:
    """What one process adds to a checkpoint: tensors by file (without suffix) and name, and other files by their whole name."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, bytes] = attrs.field(factory=dict)

    @property
    def sizes(self) -> list[int]:
        """About how many bytes each file will have."""
        from truing.train.checkpoint.tensors import bytes_of

        return [*map(bytes_of, self.tensors.values()), *map(len, self.documents.values())]


@attrs.frozen
class CheckpointStore:
    """The checkpoints in one folder, each a folder named for its step."""

    folder: Path

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or will be."""
        return self.folder / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Return all of them, oldest first, damaged ones too."""
        found = [path for path in self.folder.glob("step-*") if step_of(path) is not None] if self.folder.is_dir() else []
        return sorted(found, key=lambda path: step_of(path) or 0)

    def has(self, path: Path) -> bool:
        """Whether a checkpoint is one of these."""
        return any(path.samefile(own) for own in self.checkpoints())

    def save(
        self, contents: Contents, *, keep: int | None = None, given_up: Callable[[], bool] = lambda: False, **about: Any
    ) -> Path:
        """Write a checkpoint from one process and return its path.

        `about` are the manifest's fields but `files`; at most `keep` checkpoints stay. Raises CheckpointError, also when `given_up`
        says, after the last byte of `contents` was read, that they may have changed meanwhile.
        """
        draft = self.begin(about["step"])
        files = self.add(draft, contents)
        if given_up():
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(f"checkpoint {self.path(about['step'])} was given up; the ones before it are whole")
        return self.seal(draft, Manifest(files=files, **about), keep)

    def begin(self, step: int) -> Path:
        """Make the folder in which the files of a checkpoint are written before it has its name."""
        draft = self.folder / f"{_DRAFT}{self.path(step).name}"
        try:
            make_folder(self.folder)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        except OSError as error:
            raise self._failure(draft, error) from error
        return draft

    def add(self, draft: Path, contents: Contents) -> dict[str, Seal]:
        """Write one process's files and return their seals. Raises CheckpointError, the draft being gone then."""
        from truing.train.checkpoint.tensors import safetensors_chunks

        tables = ((f"{name}.safetensors", safetensors_chunks(table)) for name, table in contents.tensors.items())
        documents = ((name, [data]) for name, data in contents.documents.items())
        try:
            return {name: write_file(draft / name, chunks) for name, chunks in itertools.chain(tables, documents)}
        except OSError as error:
            raise self._failure(draft, error, contents) from error

    def seal(self, draft: Path, manifest: Manifest, keep: int | None = None) -> Path:
        """Write the manifest and give the checkpoint its name; it exists from then on. Then delete what `keep` no longer keeps."""
        final = self.path(manifest.step)
        try:
            write_file(draft / MANIFEST, [manifest.render()])
            sync_folder(draft)
            if final.exists():
                self._put_aside(final, _REPLACED)
            draft.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            raise self._failure(draft, error) from error
        self._settle_replaced()
        if keep is not None:
            self._delete_beyond(keep)
        return final

    def _delete_beyond(self, keep: int) -> None:
        """Delete the oldest checkpoints, but nothing unless the newest reads as it was written: it may be the last good one."""
        *older, newest = self.checkpoints()
        if len(older) < keep or not _is_whole(newest):
            return
        whole = [path for path in older if _is_whole(path, contents=False)]
        kept = {newest, *(whole[-(keep - 1) :] if keep > 1 else ())}
        for path in older:
            if path not in kept:
                with suppress(OSError):  # the next save tries again
                    shutil.rmtree(self._put_aside(path, _DELETED))

    def tidy(self) -> None:
        """Remove what a killed process left half done; a replaced checkpoint gets its name back where its successor has none."""
        self._settle_replaced()
        for path in self.folder.glob(".*") if self.folder.is_dir() else ():
            if path.name.startswith((_DRAFT, _DELETED)):
                shutil.rmtree(path, ignore_errors=True)

    def _settle_replaced(self) -> None:
        for path in self.folder.glob(f"{_REPLACED}*") if self.folder.is_dir() else ():
            final = path.with_name(path.name.removeprefix(_REPLACED))
            if final.exists():
                sync_folder(self.folder)  # else a disk that loses power might remove this one and never have named the other
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(final)

    def put_aside_after(self, step: int) -> None:
        """Rename the checkpoints of later steps, which belong to a course that the run now leaves, or are damaged."""
        for path in self.checkpoints():
            if (step_of(path) or 0) > step:
                self._put_aside(path, _SUPERSEDED)

    def _put_aside(self, path: Path, prefix: str) -> Path:
        """Take a checkpoint's name from it, so that what becomes of it then is never seen by half, and return where it is."""
        aside = path.with_name(prefix + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        return path.rename(aside)

    def _failure(self, draft: Path, error: OSError, contents: Contents | None = None) -> CheckpointError:
        """Remove the draft and return what to tell the user."""
        written = size_of_folder(draft)
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):  # the next run tries again
            self._settle_replaced()
        short = "" if contents is None else shortfall(error, contents.sizes, written, self.folder)
        return CheckpointError(
            f"checkpoint {self.folder / draft.name.removeprefix(_DRAFT)} cannot be written: {error.strerror or error}{short}; "
            "the ones before it are whole. Free space or mend the disk, and go on with --resume"
        )


def _is_whole(path: Path, *, contents: bool = True) -> bool:
    try:
        verify(path, contents=contents)
    except DamagedError:
        return False
    return True
