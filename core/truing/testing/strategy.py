"""The check that a dataset strategy runs in its own tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing.data.encode import Encoder
from truing.data.example import DatasetStrategy, Example
from truing.errors import RowError
from truing.loss import Layout
from truing.testing.models import tiny_tokenizer
from truing.testing.settings import as_settings

Row = Mapping[str, Any]


def check_dataset_strategy(
    strategy: DatasetStrategy | type[DatasetStrategy], rows: Sequence[Row], bad_rows: Sequence[Row] = ()
) -> None:
    """Check that a format reads `rows`, for each of its layouts, and refuses `bad_rows` with a message that names a column.

    `strategy` is a class, taken with its default settings, or an instance. Raises AssertionError that says which promise is broken
    and what to do.
    """
    reader = as_settings("dataset_strategy", strategy)
    assert rows, "check_dataset_strategy needs at least one row that the format can read"
    for number, row in enumerate(rows):
        examples = _parse(reader, row, number)
        for layout in sorted(reader.layouts, key=str):
            for example in examples:
                _check_fits(reader, example, layout, number)
    settings = [value for value in attrs.asdict(reader, recurse=False).values() if isinstance(value, str)]
    columns = {column for row in (*rows, *bad_rows) for column in row} | set(settings)
    for number, row in enumerate(bad_rows):
        _check_refuses(reader, row, number, columns)


def _parse(strategy: Any, row: Row, number: int) -> Sequence[Example]:
    name, before = type(strategy).__name__, copy.deepcopy(row)
    try:
        examples = _as_list(strategy.parse(row))
    except Exception as error:
        raise AssertionError(f"{name}.parse failed on row {number}, {row}: {type(error).__name__}: {error}") from error
    assert examples, f"{name}.parse makes nothing of row {number}, {row}; raise truing.RowError for such a row, and say why"
    for example in examples:
        assert isinstance(example, Example), (
            f"{name}.parse must return a truing.Example or a list of them, got {type(example).__name__} for row {number}"
        )
    assert row == before, f"{name}.parse changes row {number}; rows are shared with later epochs and other formats: copy first"
    again = _as_list(strategy.parse(row))
    assert [attrs.asdict(each, recurse=False) for each in again] == [attrs.asdict(each, recurse=False) for each in examples], (
        f"{name}.parse reads row {number} in two ways when it is called twice; it must not draw random numbers or remember rows"
    )
    return examples


def _as_list(parsed: Any) -> Sequence[Any]:
    return parsed if isinstance(parsed, (list, tuple)) else [parsed]


def _check_fits(strategy: Any, example: Example, layout: Layout, number: int) -> None:
    where = f"{type(strategy).__name__}.parse, row {number}"
    [encoded] = Encoder(tiny_tokenizer(), layout).encode([example])
    assert not isinstance(encoded, RowError), f"{where} does not fit its layout {layout.name}: {encoded}"
    if layout is Layout.ROLLOUT:
        assert example.prompt, f"{where} has an empty prompt, and {layout.name} has nothing else"
        return
    assert all(example.responses), f"{where} has an empty response, from which nothing is learned; raise RowError for such a row"
    if layout in (Layout.PAIRED, Layout.RANKED):
        distinct = [text for index, text in enumerate(example.responses) if text not in example.responses[:index]]
        assert len(distinct) == len(example.responses), (
            f"{where} has the same response twice, so that nothing is preferred; raise RowError for such a row"
        )


def _check_refuses(strategy: Any, row: Row, number: int, columns: set[str]) -> None:
    name = type(strategy).__name__
    try:
        example = strategy.parse(row)
    except RowError as error:
        assert any(column in str(error) for column in columns), (
            f"{name}.parse refuses bad row {number} without naming a column ({', '.join(sorted(columns))}): {str(error)!r}"
        )
        return
    except Exception as error:
        raise AssertionError(
            f"{name}.parse fails on bad row {number} with {type(error).__name__}: {error}. Raise truing.RowError that names the "
            "column, what it holds and what is allowed"
        ) from error
    raise AssertionError(f"{name}.parse accepts bad row {number}, {row}, as {example}; raise truing.RowError")
