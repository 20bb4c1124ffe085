"""Reads what `datasets` wrote with save_to_disk: Arrow files, and JSON that names them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truing.data.files import Row, number_rows
from truing.data.watch import Watch
from truing.errors import DataError, first_line

SPLITS, STATE = "dataset_dict.json", "state.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What an Arrow stream ends with; without it a file that was cut between two batches of rows would read as a shorter one."""


def is_saved(folder: Path) -> bool:
    """Return whether a folder is one that `datasets` wrote."""
    return (folder / SPLITS).is_file() or (folder / STATE).is_file()


def saved_splits(folder: Path) -> dict[str, Path]:
    """Return the folder of each split. Raises DataError where the file that names them is damaged or names others."""
    if not (folder / SPLITS).is_file():
        return {"train": folder}
    names = _read_json(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{folder / SPLITS} names no splits; copy the folder again from its source")
    return {name: _within(folder, name, folder / SPLITS) for name in names}


def read_saved(folder: Path, of: str, watch: Watch) -> Iterator[Row]:
    """Yield the rows of one split, numbered from 1. Raises DataError where a file of it is damaged, cut or missing."""
    import datasets

    number = 0
    for shard in _shards(folder):
        try:
            watch.add(shard)
            _require_end(shard)
            # in memory, one file at a time: a file that is cut while it is mapped kills the process
            rows = datasets.Dataset.from_file(str(shard), in_memory=True)
        except Exception as error:  # datasets and pyarrow share no type of error
            raise DataError(f"{shard} cannot be read ({first_line(error)}); copy the folder again from its source") from error
        yield from number_rows(rows, of, start=number + 1)
        number += len(rows)


def _shards(folder: Path) -> list[Path]:
    state = folder / STATE
    entries = _read_json(state).get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries] if isinstance(entries, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{state} names no files of rows; copy the folder again from its source")
    return [_within(folder, str(name), state) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); copy the folder again from its source") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no JSON object; copy the folder again from its source")
    return values


def _within(folder: Path, name: str, named_by: Path) -> Path:
    if Path(name).name != name:
        raise DataError(f"{named_by} names {name!r}, which is not in its folder; only what is there is read")
    return folder / name


def _require_end(shard: Path) -> None:
    with shard.open("rb") as file:
        file.seek(-min(len(_END), shard.stat().st_size), 2)
        if file.read() != _END:
            raise EOFError("the end is missing, so rows may be")
