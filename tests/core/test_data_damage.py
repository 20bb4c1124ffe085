"""Files that are cut, damaged, or change while they are read: named, and never fewer rows than there were."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from truing.config.classes import DataConfig, TrainerConfig
from truing.data import prepare, prepare_rows
from truing.data.files import Row, read_file
from truing.data.load import load_rows
from truing.data.strategies import Preference
from truing.errors import DataError
from truing.loss import Layout
from truing.testing import tiny_tokenizer

ROWS = [{"prompt": f"question {number}", "chosen": f"yes {number}", "rejected": f"no {number}"} for number in range(40)]
COMMON: dict[str, Any] = {"layout": Layout.PAIRED, "trainer": TrainerConfig(), "context_length": None}


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Write rows in the form that the name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
        return path
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".csv":
        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(rows))
    else:
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def source_of(path: Path, **settings: Any) -> DataConfig:
    return DataConfig(path=str(path), format=Preference(), **settings)


def trees_of(source: DataConfig) -> Any:
    return prepare([source], tokenizer=tiny_tokenizer(), base_dir=Path(), **COMMON)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_anywhere_is_named_even_if_bad_rows_are_skipped(
    tmp_path: Path, name: str, share: float, on_bad_row: Any
) -> None:
    path = write(tmp_path / name)
    assert len(trees_of(source_of(path))[0]) == len(ROWS)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError) as failure:
        trees_of(source_of(path, on_bad_row=on_bad_row))
    assert str(failure.value).startswith(str(path)) and "on_bad_row" not in str(failure.value)


def test_a_line_that_is_cut_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(DataError, match=rf"{path}:40: not JSON"):
        trees_of(source_of(path))


def test_a_field_that_is_cut_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    os.truncate(path, path.stat().st_size - 8)  # within the last of three fields, and without its comma
    with pytest.raises(DataError, match=rf"{path}:41: the row has more or fewer fields"):
        trees_of(source_of(path))


@pytest.mark.parametrize(("name", "kind"), [("rows.csv", "csv"), ("rows.txt", "text")])
def test_a_file_without_a_line_break_at_its_end_is_counted(tmp_path: Path, name: str, kind: Any) -> None:
    path = write(tmp_path / name)
    assert [row.unfinished for row in read_file(path, kind)] == [False] * len(ROWS)
    os.truncate(path, path.stat().st_size - 3)
    assert [row.unfinished for row in read_file(path, kind)] == [False] * (len(ROWS) - 1) + [True]
    if kind == "csv":
        _, report = trees_of(source_of(path))
        assert "1 row at the end of a file that has no line break there: it may have been cut" in report.lines()


def test_a_header_that_is_cut_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    os.truncate(path, 5)
    with pytest.raises(DataError, match=rf"{path}: the file ends within its first line; copy it again"):
        trees_of(source_of(path, on_bad_row="skip"))


def test_what_follows_an_array_of_rows_is_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json")
    path.write_text(path.read_text() + "\n" + path.read_text())
    *good, after = read_file(path, "json")
    assert len(good) == len(ROWS)
    assert after.where == f"{path}:2" and after.problem is not None and after.breaks_off
    assert "the array of rows ends, and '[{" in after.problem


def saved(folder: Path, splits: bool = False) -> Path:
    rows = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict(train=rows) if splits else rows).save_to_disk(folder, **({} if splits else {"num_shards": 2}))
    return folder


def columns_of(path: Path, **settings: Any) -> list[Any]:
    return [row.columns for row in load_rows(source_of(path, **settings), Path())]


def test_what_datasets_saved_is_read_shard_by_shard(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    found = list(load_rows(source_of(folder), Path()))
    assert [row.columns for row in found] == ROWS
    assert [row.where for row in found] == [f"{folder} train, row {number}" for number in range(1, 41)]
    assert columns_of(folder, split="train[30:]") == ROWS[30:] and columns_of(folder, limit=3) == ROWS[:3]
    assert columns_of(saved(tmp_path / "splits", splits=True)) == ROWS
    rows = datasets.Dataset.from_list(ROWS).select([3, 1])
    rows.set_format("numpy")
    rows.save_to_disk(tmp_path / "chosen")
    assert columns_of(tmp_path / "chosen") == [ROWS[3], ROWS[1]]


@pytest.mark.parametrize("cut", [1, 8, 9, 500, -1])
def test_an_arrow_shard_that_is_cut_is_named(tmp_path: Path, cut: int) -> None:
    """A cut of 8 bytes leaves whole batches: the stream's own reader would take it for a shorter one."""
    shard = sorted(saved(tmp_path / "saved").glob("*.arrow"))[1]
    os.truncate(shard, shard.stat().st_size - cut if cut > 0 else 0)
    with pytest.raises(DataError, match=rf"{shard} cannot be read \(\w+: .*\); copy the folder again from its source"):
        trees_of(source_of(tmp_path / "saved", on_bad_row="skip"))


def test_an_arrow_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    shard = sorted(saved(tmp_path / "saved").glob("*.arrow"))[1]
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard} cannot be read \(FileNotFoundError"):
        columns_of(tmp_path / "saved")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"_data_files": []}', '{"_data_files": [3]}', '{"_data_files": [{"filename": 3}]}']
)
def test_a_saved_dataset_whose_state_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    saved(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text(content)
    with pytest.raises(DataError, match=r"saved/state\.json (cannot be read|holds no JSON object|names no files of rows)"):
        columns_of(tmp_path / "saved")


def touch(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n')


def replace(path: Path) -> None:
    before = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.replace(path)


CHANGES = [touch, append, replace, Path.unlink, lambda path: os.truncate(path, 0)]


def disturbed(rows: Iterator[Row], path: Path, change: Any, after: int = 3) -> None:
    for number, _ in enumerate(rows):
        if number == after:
            change(path)


@pytest.mark.parametrize("change", CHANGES, ids=["touched", "appended to", "replaced", "removed", "emptied"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz"])
@pytest.mark.parametrize("limit", [None, 10])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, name: str, change: Any, limit: int | None) -> None:
    path = write(tmp_path / name)
    with pytest.raises(
        DataError, match=rf"{path} (changed while it was being read: it had [\d,]+ bytes of 2|cannot be found any more)"
    ):
        disturbed(load_rows(source_of(path, limit=limit), Path()), path, change)


def test_a_file_that_changes_between_counting_and_reading_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    rows = load_rows(source_of(path, split="train[50%:]"), Path())
    append(path)
    with pytest.raises(DataError, match="changed while it was being read"):
        list(rows)


def test_a_bad_row_of_a_file_that_has_changed_is_put_down_to_the_change(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS * 100)
    rows = load_rows(source_of(path), Path())
    next(rows)
    path.write_text("{" * path.stat().st_size)
    with pytest.raises(DataError, match="changed while it was being read"):
        next(row for row in rows if row.problem)


def test_a_shard_or_a_cached_file_that_changes_is_named(tmp_path: Path) -> None:
    shard = sorted(saved(tmp_path / "saved").glob("*.arrow"))[0]
    with pytest.raises(DataError, match=rf"{shard} changed"):
        disturbed(load_rows(source_of(tmp_path / "saved"), Path()), shard, touch)
    rows = datasets.load_from_disk(tmp_path / "saved")

    class Changing(datasets.Dataset):
        def __iter__(self) -> Any:
            touch(shard)
            return super().__iter__()

    rows.__class__ = Changing
    with pytest.raises(DataError, match=rf"{shard} changed"):
        prepare_rows(rows, Preference(), tokenizer=tiny_tokenizer(), **COMMON)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    rows = load_rows(source_of(path), Path())
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} cannot be read: No such file or directory; it must be a file"):
        next(rows)
