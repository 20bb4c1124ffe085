"""Rows that are damaged in any way: every format makes Examples of them or says what is wrong, and leaves them as they are."""

from __future__ import annotations

import copy
import functools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.repository.samples import Sample, read_samples
from truing.data.encode import Encoded, Encoder
from truing.data.example import Example
from truing.errors import RowError
from truing.registry import Registry
from truing.testing import tiny_tokenizer

REGISTRY = Registry.load(quiet=True)
SAMPLES = read_samples(REGISTRY)
JUNK: list[Any] = [
    None, True, False, 0, 1, -7, 2**70, 0.5, float("nan"), float("inf"), "", " ", "\n\t", "x", "{", "{prompt}", "1", "\ud800",
    "a\udfffb", "\0", "é" * 500, "<|im_end|>", "</s>", b"bytes", [], {}, [None], [[]], [{}], [[[{"role": []}]]], ["text"],
    [{"role": "user"}], [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}],
    [{"role": "assistant", "content": None, "tool_calls": [{"function": "f"}]}], [{"role": "robot", "content": "a"}],
    [{"role": ["user"], "content": "a"}], [{"role": "user", "content": ["part"]}], [{"role": "assistant", "content": " "}],
    [{"role": "system", "content": ""}], [{"role": "tool", "content": "42"}], [{"content": "no role"}],
    {"role": "assistant", "content": "a"}, [{"from": "human", "value": "q"}, {"from": "gpt", "value": None}],
    [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}], [{"answer": "a", "rank": "first"}], [{"rank": 1}, {"answer": 3}],
]  # fmt: skip
NAMES = ["prompt", "system", "chosen", "rejected", "completion", "label", "margin", "tools", "messages", "text", "answers", "odd"]
DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 99),
        st.sampled_from(("set", "set", "drop", "empty", "cut", "double", "add")),
        st.integers(0, 999),
    ),
    min_size=1,
    max_size=3,
)


@functools.cache
def encoder(layout: Any) -> Encoder:
    return Encoder(tiny_tokenizer(), layout)


ROUNDS = -(-10_000 // len(SAMPLES))


@settings(deadline=None, max_examples=ROUNDS, suppress_health_check=[HealthCheck.too_slow])
@given(DAMAGE)
def test_ten_thousand_damaged_rows_are_read_or_refused(damage: list[tuple[int, int, str, int]]) -> None:
    """Every format's samples get the same damage."""
    for number, sample in enumerate(SAMPLES):
        row = copy.deepcopy(sample.row)
        for depth, place, what, junk in damage:
            break_something(row, depth, place + number, what, junk + number)
        check_is_read_or_refused(sample, row)


def check_is_read_or_refused(sample: Sample, row: dict[str, Any]) -> None:
    before = repr(row)
    try:
        parsed = sample.strategy.parse(row)
    except RowError as error:
        assert str(error)
        return
    finally:
        assert repr(row) == before, sample.label
    examples = [parsed] if isinstance(parsed, Example) else list(parsed)
    assert examples and all(isinstance(example, Example) for example in examples), sample.label
    assert all(isinstance(tree, (Encoded, RowError)) for tree in encoder(sample.layout).encode(examples)), sample.label


def break_something(row: dict[str, Any], depth: int, place: int, what: str, junk: int) -> None:
    """Damage a value of the row, `depth` lists or mappings down at most."""
    holder: Any = row
    keys = list(row)
    for _ in range(depth):
        inner = holder[keys[place % len(keys)]] if keys else None
        if not isinstance(inner, (dict, list)) or not inner:
            break
        holder, keys = inner, list(inner) if isinstance(inner, dict) else list(range(len(inner)))
    if not keys or what == "add":
        row[NAMES[place % len(NAMES)]] = JUNK[junk % len(JUNK)]
        return
    key = keys[place % len(keys)]
    value = holder[key]
    if what == "drop":
        del holder[key]
    elif what == "empty":
        holder[key] = type(value)() if isinstance(value, (str, list, dict)) else None
    elif what in ("cut", "double"):
        holder[key] = (value[: place % 3] if what == "cut" else value * 2) if isinstance(value, (str, list)) else [value]
    else:
        holder[key] = copy.deepcopy(JUNK[junk % len(JUNK)])


def test_damage_reaches_every_format_that_is_registered() -> None:
    assert {type(sample.strategy) for sample in SAMPLES} == set(REGISTRY.classes("dataset_strategy"))
