"""No row of the docs' samples is claimed by two formats, and who recognises a row can read it."""

from __future__ import annotations

import pytest

from tests.repository.samples import read_samples
from truing.data.example import Example
from truing.loss import Layout
from truing.registry import Registry

REGISTRY = Registry.load(quiet=True)
SAMPLES = read_samples(REGISTRY)


def recognising(row, layout):
    classes = [cls for cls in REGISTRY.classes("dataset_strategy") if layout in cls.layouts]
    return [cls for cls in classes if _can(cls) and cls.recognises(row)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.label)
def test_at_most_one_format_recognises_a_row_and_reads_it(sample):
    for layout in Layout:
        found = recognising(sample.row, layout)
        assert len(found) <= 1, (layout, found)
        for cls in found:
            parsed = cls().parse(sample.row)
            assert all(isinstance(example, Example) for example in (parsed if isinstance(parsed, list | tuple) else [parsed]))


def test_every_format_that_recognises_rows_does_so_with_a_sample():
    able = {(cls.name, layout) for cls in REGISTRY.classes("dataset_strategy") for layout in cls.layouts if _can(cls)}
    seen = {(cls.name, layout) for sample in SAMPLES for layout in Layout for cls in recognising(sample.row, layout)}
    assert seen == able and len(able) > 10


def _can(cls):
    return callable(getattr(cls, "recognises", None))
