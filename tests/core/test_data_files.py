"""Files as they come: every row as the file has it, and every damage at its line."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.data.files import Row, file_type, read_file

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "messages": [{"role": "user", "content": "x", "name": "n"}, {"role": "assistant", "content": "y"}]},
    {"prompt": 3, "other": None, "messages": "text"},
    {"prompt": ["{}", 1.5, True], "nested": {"deep": [None]}},
]


def read(path: Path) -> list[Row]:
    kind = file_type(path)
    assert kind is not None
    return list(read_file(path, kind))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.ndjson", "rows.jsonl.gz", "rows.json.gz"])
def test_json_lines_come_out_as_they_are(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\n".join(map(json.dumps, ROWS)).encode())
    assert [(row.columns, row.where) for row in read(path)] == [(columns, f"{path}:{line}") for line, columns in enumerate(ROWS, 1)]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_comes_out_as_it_is(tmp_path: Path, name: str, indent: int | None) -> None:
    path = write(tmp_path / name, json.dumps(ROWS, indent=indent).encode())
    rows = read(path)
    assert [row.columns for row in rows] == ROWS
    if indent:
        lines = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
        starts = [number for number, line in enumerate(lines.split(b"\n"), 1) if line == b"  {"]
        assert [row.where for row in rows] == [f"{path}:{number}" for number in starts]


@pytest.mark.parametrize("content", [b"[]", b"\n\n", b" [ \n ] "])
def test_no_rows_are_no_rows(tmp_path: Path, content: bytes) -> None:
    assert read(write(tmp_path / "rows.json", content)) == []


def test_blank_lines_line_ends_and_byte_order_marks_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n\n{"a": "\xe2\x80\xa8\xc2\x85"}\r\n')
    assert [(row.columns, row.where) for row in read(path)] == [({"a": 1}, f"{path}:1"), ({"a": "\u2028\x85"}, f"{path}:4")]


DAMAGED = [
    (b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
    (b'{"a": "caf\xe9"}', "bad UTF-8: byte 0xe9 at column 11; save the file as UTF-8"),
    (b"[1, 2]", "a row must be a JSON object of columns, got list [1, 2]"),
    (b'"text"', "a row must be a JSON object of columns, got str 'text'"),
    (b'{"a": 1} {"a": 2}', "not JSON: Extra data at column 10"),
    (b"9" * 5000, "Exceeds the limit"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b'\xff\xfe{\x00"\x00', "bad UTF-8: byte 0xff at column 1"),
]


@pytest.mark.parametrize(("line", "problem"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named_and_the_rest_is_read(tmp_path: Path, line: bytes, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    first, damaged, last = read(path)
    assert (first.columns, last.columns) == ({"a": 0}, {"a": 2})
    assert damaged.where == f"{path}:2" and damaged.problem is not None and problem in damaged.problem
    assert len(damaged.problem) < 300


def test_a_truncated_gz_gives_its_whole_rows_and_says_where_it_broke(tmp_path: Path) -> None:
    content = "".join(json.dumps({"number": number, "noise": str(math.sin(number))}) + "\n" for number in range(2000)).encode()
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(content)[:-2000])
    *good, broken = read(path)
    assert 500 < len(good) < 2000 and [row.columns["number"] for row in good] == list(range(len(good)))
    assert broken.where == f"{path}:{len(good) + 1}"
    assert (
        broken.problem is not None and "the file breaks off or is damaged here, and no row after it can be read" in broken.problem
    )


def test_what_is_no_gz_says_so(tmp_path: Path) -> None:
    for name in ("rows.jsonl.gz", "rows.csv.gz", "rows.txt.gz"):
        path = tmp_path / name
        path.write_bytes(b'{"a": 1}\n')
        (row,) = read(path)
        assert row.problem is not None and "Not a gzipped file" in row.problem


@pytest.mark.parametrize(
    ("content", "problem", "line"),
    [
        (b'[{"a": 1},\n{"a": 2}\n{"a": 3}]', "not JSON: expecting ',' or ']'", 3),
        (b'[{"a": 1},\n{"a": }]', "not JSON: Expecting value", 2),
        (b'[{"a": 1}', "expecting ',' or ']'", 1),
    ],
)
def test_a_damaged_array_gives_the_rows_before(tmp_path: Path, content: bytes, problem: str, line: int) -> None:
    path = write(tmp_path / "rows.json", content)
    *good, broken = read(path)
    assert good[0].columns == {"a": 1}
    assert broken.problem is not None and problem in broken.problem and "no row after it can be read" in broken.problem
    assert broken.where == f"{path}:{line}"


def test_an_array_with_bad_bytes_or_depth_or_of_no_objects(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / "rows.json", b'[{"a": "\xe9"}]'))
    assert row.problem is not None and "bad UTF-8" in row.problem
    (row,) = read(write(tmp_path / "rows.json", b"[" * 100_000))
    assert row.problem is not None and "not readable as JSON" in row.problem
    (row,) = read(write(tmp_path / "rows.json", b'["text"]'))
    assert row.problem is not None and "a row must be a JSON object" in row.problem
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(b"[" + b",".join(b'{"a": %d}\n' % number for number in range(50_000)) + b"]")[:-5000])
    (row,) = read(path)
    assert row.problem is not None and "breaks off" in row.problem


def test_csv_is_text_in_every_column(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b'prompt,chosen\r\n"a, ""b""\nc",NA\r\n007,true\r\n')
    assert [(row.columns, row.where) for row in read(path)] == [
        ({"prompt": 'a, "b"\nc', "chosen": "NA"}, f"{path}:2"),
        ({"prompt": "007", "chosen": "true"}, f"{path}:4"),
    ]


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b"a\n" + b"x" * 1_000_000 + b"\n")
    assert len(read(path)[0].columns["a"]) == 1_000_000


def test_damaged_csv_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b"a,b\n1\n1,2,3\ncaf\xe9,x\n1,2\n")
    short, long, bad, good = read(path)
    assert [row.where for row in (short, long, bad, good)] == [f"{path}:{line}" for line in (2, 3, 4, 5)]
    assert short.problem == long.problem and "more or fewer fields than the header" in str(short.problem)
    assert "bad UTF-8" in str(bad.problem) and good.columns == {"a": "1", "b": "2"}
    *_, broken = read(write(path, b'a,b\n1,2\n"open,2\n'))
    assert "not CSV: unexpected end of data" in str(broken.problem) and broken.where == f"{path}:3"


def test_text_is_one_row_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", b" a \r\n\nb\xe9\n{c}")
    first, bad, last = read(path)
    assert (first.columns, last.columns) == ({"text": " a "}, {"text": "{c}"})
    assert (bad.where, "bad UTF-8" in str(bad.problem)) == (f"{path}:3", True)


def test_parquet(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "rows.parquet"
    for text in ("a", "b"):  # the second time in the same place: nothing may be cached
        datasets.Dataset.from_list([{"prompt": text, "n": 1}, {"prompt": "z", "n": None}]).to_parquet(str(path))
        assert [(row.columns, row.where) for row in read(path)] == [
            ({"prompt": text, "n": 1}, f"{path}, row 1"),
            ({"prompt": "z", "n": None}, f"{path}, row 2"),
        ]
    path.write_bytes(b"PAR1 not really")
    (row,) = read(path)
    assert row.problem is not None and "not readable as Parquet" in row.problem


def test_types_by_suffix() -> None:
    assert [file_type(Path(name)) for name in ("a.json", "a.csv.gz", "a.parquet", "a.txt", "a.b.jsonl", "a.gz", "a.xlsx")] == [
        "json",
        "csv",
        "parquet",
        "text",
        "json",
        None,
        None,
    ]


@settings(deadline=None)
@given(content=st.binary(max_size=60), kind=st.sampled_from(["json", "csv", "text"]), suffix=st.sampled_from(["", ".gz"]))
def test_any_bytes_are_rows_or_problems(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: Any, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"rows{suffix}"
    path.write_bytes(content)
    for row in read_file(path, kind):
        assert row.problem or isinstance(row.columns, dict)


def test_suffixes_may_be_capitals(tmp_path: Path) -> None:
    assert [row.columns for row in read(write(tmp_path / "ROWS.JSONL", b'{"a": 1}'))] == [{"a": 1}]
    (tmp_path / "ROWS.CSV.GZ").write_bytes(gzip.compress(b"a\n1\n"))
    assert [row.columns for row in read(tmp_path / "ROWS.CSV.GZ")] == [{"a": "1"}]


@pytest.mark.parametrize("content", [{"prompt": "a"}, {"train": [{"prompt": "a"}]}])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_not_a_file_of_rows(tmp_path: Path, content: dict[str, Any], indent: int | None) -> None:
    (row,) = read(write(tmp_path / "rows.json", json.dumps(content, indent=indent).encode()))
    if indent is None and "prompt" in content:
        assert row.columns == content
    else:
        assert row.problem == "the file is one JSON object, not rows; write one object per line, or one array of objects"


@pytest.mark.parametrize("content", [b'{"a": 1, "a": 2}', b'[{"a": 1, "a": 2}]'])
def test_a_key_that_is_there_twice_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (row,) = read(write(tmp_path / "rows.json", content))
    assert row.problem is not None and "an object has the key 'a' twice; keep one of them" in row.problem


def test_a_csv_header_that_names_a_column_twice_is_a_problem(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / "rows.csv", b"a,b,a\n1,2,3\n"))
    assert row == Row(
        f"{tmp_path}/rows.csv:1", problem="the header names the column 'a' twice; rename one of them", breaks_off=True
    )


def test_parquet_without_rows_is_empty_and_damage_is_said(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == []
    (row,) = read(write(tmp_path / "bad.parquet", b"nothing of the kind"))
    assert row.problem is not None and row.problem.startswith("not readable as Parquet: ArrowInvalid: ")
    assert not row.problem.endswith(".")
