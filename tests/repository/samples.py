"""Reads docs/reference/formats-samples.md: rows, the formats that read them, and the text that these make of them.

    <!-- sample: LAYOUT, LAYOUT: FORMAT -->
    ```json
    a row
    ```

    ```text
    ── prompt
    text, up to the line break before the next ──
    ── chosen
    ...
    ```

FORMAT is what `data.format` takes in YAML: a name, a mapping with settings, or a list of either, all of which read the row alike.
Of several layouts the text is that of the first; ROLLOUT has its prompt alone, and SINGLE prompt and chosen, or completion.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from ruamel.yaml import YAML

from tests.repository.doc_blocks import ROOT, blocks
from truing.config.structure import strict_converter
from truing.data.dataset import branch_roles
from truing.data.encode import Encoder
from truing.data.example import Example
from truing.loss import Layout
from truing.registry import Registry
from truing.testing import tiny_tokenizer

PAGE = ROOT / "docs" / "reference" / "formats-samples.md"


@attrs.frozen
class Sample:
    """A row of the page for one format and layout, and the parts of text that it becomes, as (name, text)."""

    place: str
    layout: Layout
    strategy: Any
    row: dict[str, Any]
    parts: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """Line, format and layout, as a test's id."""
        return f"{self.place}-{self.strategy.name}-{self.layout.value}"


def read_samples(registry: Registry) -> list[Sample]:
    """Return every sample of the page."""
    found = list(blocks(PAGE))
    return [
        Sample(block.place, layout, make(registry, layout, wanted), json.loads(block.text), _parts(result.text, layout))
        for block, result in itertools.pairwise(found)
        if block.kind == "sample"
        for layout, wanted in _named(block.argument)
    ]


def _named(argument: str) -> Iterator[tuple[Layout, Any]]:
    layouts, _, formats = argument.partition(": ")
    wanted = YAML(typ="safe", pure=True).load(formats)
    for layout in layouts.split(", "):
        for each in wanted if isinstance(wanted, list) else [wanted]:
            yield Layout(layout), each


def make(registry: Registry, layout: Layout, wanted: Any) -> Any:
    """Return the format that a configuration would make of a name, or of a mapping with settings."""
    settings = {"name": wanted} if isinstance(wanted, str) else wanted
    cls = registry.get("dataset_strategy", settings["name"], layout=layout)
    return strict_converter().structure({key: value for key, value in settings.items() if key != "name"}, cls)


def _parts(text: str, layout: Layout) -> tuple[tuple[str, str], ...]:
    parts = re.findall(r"^── ([^\n]*)\n(.*?)\n(?=── |\Z)", text, re.M | re.S)
    if layout is Layout.ROLLOUT:
        return tuple((name, part) for name, part in parts if name == "prompt")
    if layout is Layout.SINGLE:
        kept = {"prompt": "prompt", "chosen": "completion", "completion": "completion"}
        return tuple((kept[name], part) for name, part in parts if name in kept)
    return tuple(parts)


def show(examples: Example | Sequence[Example], layout: Layout) -> tuple[tuple[str, str], ...]:
    """Return the parts of what a format made of a row; messages as a ChatML template renders them."""
    parts: list[tuple[str, str]] = []
    for example in [examples] if isinstance(examples, Example) else examples:
        rendered = Encoder(tiny_tokenizer(), layout).render(example)
        parts.append(("prompt", rendered.prompt))
        names = [f"{role}{_rank(example, index)}" for index, role in enumerate(branch_roles(layout, len(rendered.wholes)))]
        assert all(whole.startswith(rendered.prompt) for whole in rendered.wholes)
        parts += zip(names, (whole.removeprefix(rendered.prompt) for whole in rendered.wholes), strict=True)
        if layout is Layout.LABELED:
            parts.append(("label", json.dumps(example.label)))
    return tuple(parts)


def _rank(example: Example, index: int) -> str:
    return f" of rank {example.ranks[index]}" if example.ranks else ""
