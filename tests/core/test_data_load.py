"""Where rows come from: files, folders, splits, and the hub (which is never reached here)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from truing.config.classes import DataConfig
from truing.data.load import load_rows
from truing.data.paths import local_path
from truing.data.strategies import PromptText
from truing.errors import ConfigError, DataError


def write(folder: Path, name: str, numbers: Sequence[int]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in numbers))
    return path


def numbers(base_dir: Path, **source: Any) -> list[int]:
    return [row.columns["n"] for row in load_rows(DataConfig(format=PromptText(), **source), base_dir)]


def test_a_file_is_beside_the_configuration_or_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "config/rows.jsonl", [1])
    write(tmp_path, "work/rows.jsonl", [2])
    write(tmp_path, "work/more.jsonl", [3])
    monkeypatch.chdir(tmp_path / "work")
    assert numbers(tmp_path / "config", path="rows.jsonl") == [1]
    assert numbers(tmp_path / "config", path="more.jsonl") == [3]
    assert numbers(tmp_path, path=str(tmp_path / "work/rows.jsonl")) == [2]


def test_several_files_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", [1, 2])
    write(tmp_path, "b.jsonl", [3])
    assert numbers(tmp_path, data_files=("b.jsonl", "a.jsonl")) == [3, 1, 2]
    assert numbers(tmp_path, data_files=("*.jsonl",)) == [1, 2, 3]
    assert numbers(tmp_path.parent, data_files=(str(tmp_path / "*.jsonl"),)) == [1, 2, 3]
    assert numbers(tmp_path.parent, path=tmp_path.name, data_files=("a.jsonl",)) == [1, 2]


def test_the_type_may_be_said(tmp_path: Path) -> None:
    write(tmp_path, "rows.data", [1])
    assert numbers(tmp_path, data_files=("rows.data",), ds_type="json") == [1]
    with pytest.raises(ConfigError, match=r"rows\.data has a suffix that is not read; use \.json, .*, or say ds_type"):
        numbers(tmp_path, path="rows.data")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[:30%]", range(3)),
        ("train[-2:]", [8, 9]),
        ("train[50%:70%]", [5, 6]),
        ("train[:1]+train[9:]", [0, 9]),
    ],
)
def test_slices_of_a_file(tmp_path: Path, split: str, expected: Sequence[int]) -> None:
    write(tmp_path, "rows.jsonl", range(10))
    assert numbers(tmp_path, path="rows.jsonl", split=split) == list(expected)
    assert numbers(tmp_path, path="rows.jsonl", split=split, limit=1) == list(expected)[:1]


def test_a_sliced_row_keeps_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", range(10))
    (row,) = load_rows(DataConfig(path="rows.jsonl", split="train[7:8]", format=PromptText()), tmp_path)
    assert row.where == f"{path}:8"


@pytest.mark.parametrize("split", ["train[:", "train[a:b]", "train[:200%]"])
def test_a_slice_that_cannot_be_read_is_refused(tmp_path: Path, split: str) -> None:
    write(tmp_path, "rows.jsonl", range(10))
    with pytest.raises(
        ConfigError, match=r"data\.split: 'train\[.*' cannot be read: .*; write train, train\[:100\] or train\[10%:20%\]"
    ):
        numbers(tmp_path, path="rows.jsonl", split=split)


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", [1])
    with pytest.raises(
        ConfigError, match=r"data\.split: 'tran\[:1\]' is no split of rows\.jsonl; did you mean 'train'\?; it has train"
    ):
        numbers(tmp_path, path="rows.jsonl", split="tran[:1]")


def test_a_folder_has_the_splits_that_its_file_names_say(tmp_path: Path) -> None:
    write(tmp_path, "folder/train.jsonl", [1, 2])
    write(tmp_path, "folder/test.jsonl", [3])
    assert numbers(tmp_path, path="folder") == [1, 2]
    assert numbers(tmp_path, path="folder", split="test") == [3]
    assert numbers(tmp_path, path="folder", split="test+train[1:]") == [3, 2]
    write(tmp_path, "folder/train.jsonl", [4, 5])
    assert numbers(tmp_path, path="folder") == [4, 5]
    with pytest.raises(ConfigError, match="'validation' is no split of folder; it has train, test"):
        numbers(tmp_path, path="folder", split="validation")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"data\.path: no dataset in .*folder .*; it must hold files of type \.json"):
        numbers(tmp_path, path="folder")


def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"n": 1}, {"n": 2}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert numbers(tmp_path, path="one", split="train[1:]") == [2]
    assert numbers(tmp_path, path="two", split="test") == [2]


def test_a_missing_file_says_what_is_near(tmp_path: Path) -> None:
    write(tmp_path, "data/preferences.jsonl", [1])
    with pytest.raises(ConfigError, match=r"data\.path: no file .*/data/preference\.jsonl; did you mean 'preferences\.jsonl'\?"):
        numbers(tmp_path, path="data/preference.jsonl")
    with pytest.raises(ConfigError, match=r"no file .*/dat/preferences\.jsonl \(no 'dat' in .*; did you mean 'data'\?\)"):
        numbers(tmp_path, path="dat/preferences.jsonl")
    with pytest.raises(ConfigError, match=r"no file or folder .*/data/sub/more"):
        numbers(tmp_path, path="data/sub/more")
    with pytest.raises(ConfigError, match=r"data\.data_files: no file .*; did you mean 'preferences\.jsonl'\?"):
        numbers(tmp_path, path="data", data_files=("preference.jsonl",))
    with pytest.raises(ConfigError, match="neither path nor data_files is given"):
        numbers(tmp_path)


def test_a_hub_id_is_asked_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"n": 1}, {"n": 2}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = DataConfig(path="owner/set", name="main", split="train[:2]", revision="v1", format=PromptText())
    rows = list(load_rows(source, tmp_path))
    assert [(row.columns, row.where) for row in rows] == [
        ({"n": 1}, "owner/set train[:2], row 1"),
        ({"n": 2}, "owner/set train[:2], row 2"),
    ]
    assert asked == [(("owner/set", "main"), {"split": "train[:2]", "revision": "v1", "data_files": None})]


def test_a_hub_that_cannot_be_reached_says_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach 'owner/set' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as failure:
        numbers(tmp_path, path="owner/set")
    message = str(failure.value)
    assert f"{tmp_path}/owner/set" in message and "Couldn't reach 'owner/set' on the Hub" in message
    assert "download it and give the folder" in message and "\n" not in message


def test_a_folder_of_which_files_would_be_left_out_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "folder/x.jsonl", [1])
    (tmp_path / "folder/LICENSE.txt").write_text("free")
    assert numbers(tmp_path, path="folder") == [1]
    (tmp_path / "folder/y.csv").write_text("prompt\n2\n")
    with pytest.raises(
        ConfigError, match=r"files that would not be read beside .*: (x\.jsonl|y\.csv); name all files in data_files"
    ):
        numbers(tmp_path, path="folder")
    (tmp_path / "folder/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: x.jsonl\n---\n")
    assert numbers(tmp_path, path="folder") == [1]


def test_a_name_too_long_for_a_file_is_no_file(tmp_path: Path) -> None:
    assert local_path("x" * 5000, tmp_path) is None
