"""Reads the rows of one file, each with its place, exactly as the file has them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import attrs

from truing.data.columns import shorten
from truing.errors import first_line

FileType = Literal["json", "csv", "parquet", "text"]
SUFFIXES: Mapping[str, FileType] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""The type of a file by its suffix; a further .gz is read through."""

_SPLITS = {"train", "validation", "test"}
_ONE_OBJECT = "the file is one JSON object, not rows; write one object per line, or one array of objects"


@attrs.frozen
class Row:
    """One row of a dataset: where it stands, and its columns or what is wrong with it."""

    where: str
    """The file and the 1-based line, or what comes nearest to it."""
    columns: Mapping[str, Any] = attrs.field(factory=dict)
    problem: str | None = None
    breaks_off: bool = False
    """Whether the problem hides rows after it, nobody knows how many, so that it must not be skipped."""
    unfinished: bool = False
    """Whether its line has no end, as the last one of a file that was cut may have none."""


def number_rows(rows: Iterable[Mapping[str, Any]], of: str, *, start: int = 1) -> Iterator[Row]:
    """Yield rows that stand in no file, numbered from `start`."""
    for number, columns in enumerate(rows, start=start):
        is_row = isinstance(columns, Mapping)
        problem = None if is_row else f"a row must be a mapping of columns, got {type(columns).__name__} {shorten(columns)}"
        yield Row(f"{of}, row {number}", columns if is_row else {}, problem)


def file_type(path: Path) -> FileType | None:
    """Return the type that the file's suffix says; None for one that core does not read."""
    return SUFFIXES.get((path.with_suffix("").suffix if _is_gzip(path) else path.suffix).lower())


def read_file(path: Path, kind: FileType) -> Iterator[Row]:
    """Yield the rows of a file in order. What cannot be read is a Row with a problem, and reading goes on where it can.

    Raises OSError where the file cannot be opened.
    """
    if path.is_file() and path.stat().st_size == 0:
        yield Row(str(path), problem="the file is empty; copy it again from its source, or leave it out", breaks_off=True)
        return
    rows = _READERS[kind](path)
    # whatever is not cut says itself where it ends: JSON by its brackets, Parquet by its footer, gzip by its checksum
    yield from _with_open_end(path, rows) if kind in ("csv", "text") and path.is_file() and not _is_gzip(path) else rows


def _with_open_end(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows, the last one unfinished where the file has no line break at its end."""
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        is_open = file.read() not in b"\r\n"
    last = next(rows, None)
    if last is None and is_open:
        yield Row(str(path), problem="the file ends within its first line; copy it again from its source", breaks_off=True)
    while last is not None:
        row, last = last, next(rows, None)
        yield attrs.evolve(row, unfinished=is_open and last is None)


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if _is_gzip(path) else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[str, bytes | None, str]]:
    """Yield (place, line without its end, problem) for lines that are not blank; a stream that breaks off ends with a problem."""
    number = 0
    with _open(path) as stream:
        try:
            for line in stream:
                number += 1
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield f"{path}:{number}", content.removesuffix(b"\n").removesuffix(b"\r"), ""
        except (EOFError, OSError, zlib.error) as error:
            yield f"{path}:{number + 1}", None, _broken(error)


def _broken(error: Exception) -> str:
    cause = str(error).rstrip(".")
    return f"the file breaks off or is damaged here, and no row after it can be read ({cause}); copy it again from its source"


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        bad = line[error.start : error.start + 1].hex()
        raise ValueError(f"bad UTF-8: byte 0x{bad} at column {error.start + 1}; save the file as UTF-8") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has the key {_repeated([key for key, _ in pairs])!r} twice; keep one of them")
    return found


def _repeated(names: Sequence[str]) -> str:
    return next(name for index, name in enumerate(names) if name in names[:index])


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg} at column {error.pos + 1}, near {shorten(text[max(0, error.pos - 20) :])}"
        ) from error
    except RecursionError as error:
        raise ValueError("not readable as JSON: nested too deeply") from error


def _json_row(where: str, value: Any) -> Row:
    if isinstance(value, dict):
        is_whole = set(value) <= _SPLITS and value and all(isinstance(rows, list) for rows in value.values())
        return Row(where, problem=_ONE_OBJECT, breaks_off=True) if is_whole else Row(where, value)
    return Row(where, problem=f"a row must be a JSON object of columns, got {type(value).__name__} {shorten(value)}")


def _read_json(path: Path) -> Iterator[Row]:
    first = next(_lines(path), None)
    if first is not None and first[1] is not None and first[1].lstrip().startswith(b"["):
        yield from _read_json_array(path)
        return
    if first is not None and first[1] is not None and first[1].strip() == b"{":
        yield Row(first[0], problem=_ONE_OBJECT, breaks_off=True)
        return
    for where, line, problem in _lines(path):
        if line is None:
            yield Row(where, problem=problem, breaks_off=True)
            continue
        try:
            yield _json_row(where, _parse_json(_decode(line)))
        except ValueError as error:
            yield Row(where, problem=str(error))


def _read_json_array(path: Path) -> Iterator[Row]:
    try:
        with _open(path) as stream:
            text = _decode(stream.read().removeprefix(b"\xef\xbb\xbf"))
    except (EOFError, OSError, zlib.error) as error:
        yield Row(str(path), problem=_broken(error), breaks_off=True)
        return
    except ValueError as error:
        yield Row(str(path), problem=str(error), breaks_off=True)
        return
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position += _blank(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            yield from _after_array(path, text, position + 1)
            return
        try:
            value, position = decoder.raw_decode(text, position)
            yield _json_row(f"{path}:{line}", value)
            position += _blank(text, position)
            if text[position : position + 1] == ",":
                position += 1
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:
            near = shorten(text[max(0, error.pos - 20) : error.pos + 20])
            problem = f"not JSON: {error.msg} near {near}, and no row after it can be read; mend the file"
            yield Row(f"{path}:{error.lineno}", problem=problem, breaks_off=True)
            return
        except (ValueError, RecursionError) as error:
            problem = f"not readable as JSON, and no row after it can be read: {error}"
            yield Row(f"{path}:{line}", problem=problem, breaks_off=True)
            return


def _after_array(path: Path, text: str, end: int) -> Iterator[Row]:
    position = end + _blank(text, end)
    if position < len(text):
        problem = f"the array of rows ends, and {shorten(text[position : position + 20])} comes after it; make it one array"
        yield Row(f"{path}:{text.count(chr(10), 0, position) + 1}", problem=problem, breaks_off=True)


def _blank(text: str, position: int) -> int:
    end = position
    while end < len(text) and text[end] in " \t\r\n":
        end += 1
    return end - position


def _read_text(path: Path) -> Iterator[Row]:
    for where, line, problem in _lines(path):
        if line is None:
            yield Row(where, problem=problem, breaks_off=True)
            continue
        try:
            yield Row(where, {"text": _decode(line)})
        except ValueError as error:
            yield Row(where, problem=str(error))


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is shorter than some completions
    with _open(path) as stream:
        # surrogateescape lets a bad byte through to its own row, instead of ending the file
        reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""), strict=True)
        line = 1
        try:
            header = reader.fieldnames or ()
            if len(set(header)) < len(header):
                problem = f"the header names the column {_repeated(header)!r} twice; rename one of them"
                yield Row(f"{path}:1", problem=problem, breaks_off=True)
                return
            for columns in reader:
                yield _csv_row(f"{path}:{line + 1}", columns)
                line = reader.line_num
        except csv.Error as error:
            problem = f"not CSV: {error}, and no row after it can be read; mend the file"
            yield Row(f"{path}:{line + 1}", problem=problem, breaks_off=True)
        except (EOFError, OSError, zlib.error) as error:
            yield Row(f"{path}:{line + 1}", problem=_broken(error), breaks_off=True)


def _csv_row(where: str, columns: dict[str | Any, Any]) -> Row:
    if None in columns or None in columns.values():
        return Row(where, problem="the row has more or fewer fields than the header; quote fields that hold commas or line breaks")
    if any("\udc80" <= character <= "\udcff" for value in columns.values() for character in value):
        return Row(where, problem="bad UTF-8; save the file as UTF-8")
    return Row(where, columns)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with _open(path) as stream:
            for batch in pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True).iter_batches(batch_size=1000):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", columns)
    except (pyarrow.ArrowException, EOFError, OSError, zlib.error) as error:
        yield Row(f"{path}, row {number + 1}", problem=f"not readable as Parquet: {first_line(error)}", breaks_off=True)


_READERS: Mapping[FileType, Callable[[Path], Iterator[Row]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "text": _read_text,
}
