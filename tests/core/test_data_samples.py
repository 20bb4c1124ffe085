"""Rows of which a format makes several samples: each is trained on, and rows and samples are counted apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from tests.core.test_data_pipeline import TOKENIZER, pair, texts, trees_of, write
from truing.config.classes import DataConfig, TrainerConfig
from truing.data import DataReport, TreeDataset, prepare
from truing.data.example import Example
from truing.errors import DataError
from truing.loss import Layout


@attrs.frozen(kw_only=True)
class Sides:
    """Each side of a pair with its label, as often as column `times` says."""

    name: ClassVar[str] = "sides"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})

    def parse(self, row: Mapping[str, Any]) -> Any:
        sides = ((row["chosen"], True), (row["rejected"], False))
        each = [Example(prompt=row["prompt"], responses=(side,), label=label, notes=("unpaired",)) for side, label in sides]
        return each * row.get("times", 1)


def sides_of(rows: Any, **options: Any) -> tuple[TreeDataset, DataReport]:
    return trees_of(rows, Sides(), layout=Layout.LABELED, **options)


def test_every_example_of_a_row_is_a_sample() -> None:
    dataset, report = sides_of([pair(), pair("r", "c", "d")])
    assert [row[1][0] for row in texts(dataset)] == ["a", "b", "c", "d"]
    assert [dataset[index].branches[0].label for index in range(4)] == [True, False, True, False]
    assert [dataset[index].sample_id for index in range(4)] == [0, 1, 2, 3]
    assert report.lines() == ["2 rows read as 4 samples, 4 kept (16 tokens)", "4 unpaired"]
    assert (report.rows_read, report.rows_kept, report.samples_read, report.samples_kept) == (2, 2, 4, 4)


def test_rows_and_samples_that_are_left_out_are_counted_apart() -> None:
    """Of four rows the second has one side over 5 tokens, the third both, and the last cannot be read."""
    rows = [pair(), pair(chosen="aaaaa"), pair(chosen="aaaaa", rejected="bbbbb"), pair(rejected="half \ud800")]
    dataset, report = sides_of(rows, max_length=5, on_bad_row="skip")
    assert [row[1][0] for row in texts(dataset)] == ["a", "b", "b"]
    assert report.lines()[:3] == [
        "4 rows read as 6 samples, 3 kept (12 tokens)",
        "1 row skipped: cannot be read",
        "3 samples dropped: longer than max_length 5",
    ]
    assert (report.rows_kept, report.samples_kept, report.rows_skipped) == (2, 3, 1)


def test_a_row_of_which_one_sample_cannot_be_read_is_refused_whole() -> None:
    rows = [pair(), pair(rejected="half \ud800"), pair("r")]
    with pytest.raises(DataError, match=r"dataset, row 2: the text has half of a surrogate pair"):
        sides_of(rows)
    dataset, _ = sides_of(rows, on_bad_row="skip")
    assert [row[0] for row in texts(dataset)] == ["<bos>q", "<bos>q", "<bos>r", "<bos>r"]


def test_a_row_that_gives_no_sample_is_a_bad_row() -> None:
    with pytest.raises(DataError, match="row 2: the format makes no sample of the row, and does not say why"):
        sides_of([pair(), pair(times=0)])


def test_what_is_no_example_is_a_bad_row() -> None:
    class Wrong(Sides):
        def parse(self, row: Mapping[str, Any]) -> Any:
            return {"prompt": "q"}

    with pytest.raises(DataError, match="row 1: the format must make an Example of the row, or a list of them, and made {'prompt'"):
        trees_of([pair()], Wrong(), layout=Layout.LABELED)


def test_a_mixture_counts_the_rows_of_which_it_has_a_sample(tmp_path: Path) -> None:
    """Of 2 and 8 samples with equal shares 2 each are drawn, so that 1 row of the first is kept, and 1 or 2 of the second."""
    for name, count in (("a", 1), ("b", 4)):
        write(tmp_path / f"{name}.jsonl", [pair(f"{name}{index}") for index in range(count)])
    sources = [DataConfig(path=f"{name}.jsonl", format=Sides(), weight=1.0) for name in "ab"]
    dataset, report = prepare(
        sources, layout=Layout.LABELED, tokenizer=TOKENIZER, trainer=TrainerConfig(), context_length=None, base_dir=tmp_path
    )
    assert report.samples_kept == len(dataset) == 4
    assert report.rows_kept == len({row[0] for row in texts(dataset)})
    assert "6 samples left out: beyond their dataset's share of the mixture" in report.lines()
