"""Finds the rows that `data` of a configuration names: files, folders, or a dataset of the hub."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from truing.config.classes import DataConfig
from truing.data.files import SUFFIXES, FileType, Row, file_type, number_rows, read_file
from truing.data.paths import local_path, may_be_hub_id, where_looked
from truing.data.saved import is_saved, read_saved, saved_splits
from truing.data.watch import Watch
from truing.errors import ConfigError, DataError, first_line
from truing.suggest import did_you_mean

_READABLE = ", ".join(SUFFIXES)


def load_rows(source: DataConfig, base_dir: Path) -> Iterator[Row]:
    """Yield the rows of one dataset in order, after `split` and `limit`.

    Local files are read anew each time and never cached. Raises ConfigError for a path, file type or split that does not exist,
    and DataError where the hub cannot give the dataset, or a file cannot be opened or changes while it is read.
    """
    watch = Watch()
    rows = _hub_rows(source, base_dir, watch) if _is_hub(source, base_dir) else _local_rows(source, base_dir, watch)
    return watched(itertools.islice(rows, source.limit), watch)


def watched(rows: Iterable[Row], watch: Watch) -> Iterator[Row]:
    """Yield rows, and raise DataError when one of the files that they come from changes meanwhile."""
    for row in rows:
        if row.problem is not None:  # which may come of the change
            watch.require_unchanged()
        yield row
    watch.require_unchanged()


def watch_files_of(rows: Any, watch: Watch) -> None:
    """Watch the files beneath rows that `datasets` has mapped into memory; other rows have none."""
    for entry in getattr(rows, "cache_files", ()):
        with contextlib.suppress(OSError, KeyError, TypeError):  # of another class with such an attribute
            watch.add(Path(entry["filename"]))


def check_source(source: DataConfig, base_dir: Path) -> None:
    """Raise ConfigError where a dataset is a file or folder that does not exist; reads nothing, and asks no hub."""
    _is_hub(source, base_dir)


def describe(source: DataConfig) -> str:
    """Return what a message calls the dataset."""
    return source.path or ", ".join(source.data_files)


def _is_hub(source: DataConfig, base_dir: Path) -> bool:
    if source.path is None:
        if not source.data_files:
            raise ConfigError("data: neither path nor data_files is given; give path: a hub id, a folder or a file")
        return False
    if local_path(source.path, base_dir) is not None:
        return False
    looks_like_file = file_type(Path(source.path)) is not None
    if looks_like_file or not may_be_hub_id(source.path):
        kind = "file" if looks_like_file else "file or folder"
        raise ConfigError(f"data.path: no {kind} {where_looked(source.path, base_dir)}")
    return True


def _local_rows(source: DataConfig, base_dir: Path, watch: Watch) -> Iterator[Row]:
    rows = _local_splits(source, base_dir, watch)
    wanted = re.split(r"[\[+]", source.split)[0]
    if wanted not in rows:
        raise ConfigError(
            f"data.split: {source.split!r} is no split of {describe(source)}{did_you_mean(wanted, rows)}; it has "
            f"{', '.join(rows) or 'none'}. A plain file's only split is train"
        )
    if source.split in rows:
        return iter(rows[source.split])
    return _sliced(source.split, rows)


def _read_all(files: Sequence[Path], source: DataConfig, watch: Watch) -> Iterable[Row]:
    kinds: list[FileType] = []
    for file in files:
        kind = source.ds_type or file_type(file)
        if kind is None:
            raise ConfigError(f"data: {file} has a suffix that is not read; use {_READABLE} (and .gz), or say ds_type")
        kinds.append(kind)
    return _Rows(lambda: itertools.chain.from_iterable(map(functools.partial(_read_watched, watch), files, kinds)))


def _read_watched(watch: Watch, file: Path, kind: FileType) -> Iterator[Row]:
    try:
        watch.add(file)
        yield from read_file(file, kind)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}; it must be a file that you may read") from error


@attrs.frozen
class _Rows:
    """Rows that can be read more than once, for slices in per cent need their number."""

    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.read()


def _sliced(split: str, rows: Mapping[str, Iterable[Row]]) -> Iterator[Row]:
    import datasets

    try:
        instruction = datasets.ReadInstruction.from_spec(split)
        parts = instruction.to_absolute({name: sum(1 for _ in of_split) for name, of_split in rows.items()})
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"data.split: {split!r} cannot be read: {error}; write train, train[:100] or train[10%:20%]") from error
    return itertools.chain.from_iterable(itertools.islice(rows[part.splitname], part.from_, part.to) for part in parts)


def _local_splits(source: DataConfig, base_dir: Path, watch: Watch) -> dict[str, Iterable[Row]]:
    folder = base_dir if source.path is None else local_path(source.path, base_dir)
    assert folder is not None, "a missing path was refused before"
    if source.data_files:
        return {"train": _read_all([file for name in source.data_files for file in _expand(name, folder)], source, watch)}
    if not folder.is_dir():
        return {"train": _read_all([folder], source, watch)}
    if is_saved(folder):
        saved = saved_splits(folder).items()
        return {name: _Rows(functools.partial(read_saved, of_split, f"{folder} {name}", watch)) for name, of_split in saved}
    return {name: _read_all(files, source, watch) for name, files in _folder_splits(folder, source).items()}


def _expand(name: str, folder: Path) -> list[Path]:
    if any(character in name for character in "*?["):
        found = sorted(folder.glob(name)) if not Path(name).is_absolute() else sorted(Path("/").glob(name.lstrip("/")))
    else:
        path = local_path(name, folder)
        found = [path] if path is not None else []
    if not found:
        raise ConfigError(f"data.data_files: no file {where_looked(name, folder)}")
    return found


def _folder_splits(folder: Path, source: DataConfig) -> dict[str, list[Path]]:
    """Return the files of each split as `datasets` sorts them: by name (train, test ...) or by the folder's README."""
    import datasets

    try:
        files = datasets.load_dataset_builder(str(folder), source.name).config.data_files or {}
    except Exception as error:
        raise ConfigError(
            f"data.path: no dataset in {folder.absolute()} ({first_line(error)}); it must hold files of type {_READABLE}, "
            "or name them in data_files"
        ) from error
    _check_within(folder, [str(file) for of_split in files.values() for file in of_split])
    splits = {str(split): [Path(file) for file in of_split] for split, of_split in files.items()}
    _check_none_left_out(folder, [file for of_split in splits.values() for file in of_split])
    return splits


def _check_within(folder: Path, files: Sequence[str]) -> None:
    """Raise ConfigError where a folder's README names files that are elsewhere, perhaps on another machine."""
    for file in files:
        if not Path(os.path.normpath(file)).is_relative_to(folder.absolute()):
            raise ConfigError(
                f"data.path: {folder.absolute()} names data outside of itself, {file}; name the files that you mean in data_files"
            )


def _check_none_left_out(folder: Path, taken: Sequence[Path]) -> None:
    """Raise ConfigError where `datasets` passes over files that could be read: it takes one type, and one way to name splits."""
    from datasets.data_files import FILES_TO_IGNORE

    readme = folder / "README.md"
    if readme.is_file() and "data_files:" in readme.read_text(encoding="utf-8", errors="replace"):
        return  # it says which files belong to the dataset
    known = {file.resolve() for file in taken}
    kinds = {file_type(file) for file in taken}
    left = [
        file.relative_to(folder)
        for file in sorted(folder.rglob("*"))
        if file_type(file) is not None and file.is_file() and file.resolve() not in known and file.name not in FILES_TO_IGNORE
    ]
    # hidden folders hold no data, and beside other types a .txt is a licence or a note
    left = [
        file
        for file in left
        if not any(part.startswith((".", "__")) for part in file.parts) and (file_type(file) != "text" or "text" in kinds)
    ]
    if left:
        raise ConfigError(
            f"data.path: {folder.absolute()} holds files that would not be read beside {taken[0].name}: "
            f"{', '.join(map(str, left[:5]))}{' …' if left[5:] else ''}; name all files in data_files, or move these elsewhere"
        )


def _hub_rows(source: DataConfig, base_dir: Path, watch: Watch) -> Iterator[Row]:
    import datasets

    assert source.path is not None, "hub datasets have a path"
    try:
        rows = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision, data_files=list(source.data_files) or None
        )
    except Exception as error:  # datasets, huggingface_hub and the HTTP client beneath share no type of error
        raise DataError(
            f"data.path: {source.path!r} is neither a file or folder ({where_looked(source.path, base_dir)}) nor a dataset of the "
            f"hub that this machine can read: {first_line(error)}. Check name, split and revision, log in with "
            "`hf auth login` if the dataset is gated, or download it and give the folder"
        ) from error
    watch_files_of(rows, watch)
    return number_rows(rows, f"{source.path} {source.split}")
