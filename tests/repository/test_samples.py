"""The rows of docs/reference/formats-samples.md become the text that the page shows, and every format has one."""

from __future__ import annotations

import copy

import pytest

from tests.repository.samples import PAGE, ROOT, read_samples, show
from truing.registry import Registry
from truing.testing import check_dataset_strategy

REGISTRY = Registry.load(quiet=True)
SAMPLES = read_samples(REGISTRY)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.label)
def test_a_sample_becomes_the_text_on_the_page(sample):
    row = copy.deepcopy(sample.row)
    assert show(sample.strategy.parse(sample.row), sample.layout) == sample.parts
    assert sample.row == row


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.label)
def test_a_format_keeps_its_promises_on_its_sample(sample):
    check_dataset_strategy(sample.strategy, [sample.row])


def test_every_format_has_a_sample_in_every_layout():
    own = {name for info in REGISTRY.plugins if is_here(info) for name in info.names.get("dataset_strategy", ())}
    registered = {(cls.name, layout) for cls in REGISTRY.classes("dataset_strategy") for layout in cls.layouts if cls.name in own}
    assert registered == {(sample.strategy.name, sample.layout) for sample in SAMPLES} and len(SAMPLES) > 50
    assert len(PAGE.read_text().split("<!-- sample: ")) > 20


def is_here(info):
    return info.dist == "truing" or (ROOT / "plugins" / info.name).is_dir()
