"""A user's function as a format: how it is called, what it may return, and whose fault it is when it fails."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from truing.data.strategies import FunctionStrategy
from truing.errors import ConfigError, RowError
from truing.loss import Layout

FUNCTIONS = """
def plain(cfg, dataset_idx=None):
    def transform(example):
        example["messages"].append("changed")
        return {"prompt": f"{cfg.greeting} {dataset_idx} {example['question']}", "chosen": "a", "rejected": "b"}
    return transform

def tokens(cfg, dataset_idx=None):
    def transform(example, tokenizer=None, processing_class=None, other=None):
        return {"prompt": f"{tokenizer} {processing_class} {other}", "answer": 1}
    return transform, {"remove_columns": ["question"]}

def bare(cfg, dataset_idx=None):
    return (lambda example, **kwargs: {"prompt": repr(kwargs)}), {"remove_columns": "__all__"}

def fails(cfg, dataset_idx=None):
    return lambda example: {"prompt": example["absent"]}

def refuses(cfg, dataset_idx=None):
    from truing import RowError
    def transform(example):
        raise RowError("column 'question' is a statement")
    return transform

def none(cfg, dataset_idx=None):
    return lambda example: None

def nothing(cfg, dataset_idx=None):
    return None

def misspelt(cfg, dataset_idx=None):
    return (lambda example: example), {"remove_columns": "question"}

def crashes(cfg, dataset_idx=None):
    return cfg["absent"]

def builtin(cfg, dataset_idx=None):
    return dict
"""


def bind(tmp_path: Path, name: str, layout: Layout = Layout.ROLLOUT) -> Any:
    (tmp_path / "formats.py").write_text(FUNCTIONS)
    strategy = FunctionStrategy(name=f"formats.{name}", base_dir=tmp_path)
    return strategy.bind(layout=layout, config=SimpleNamespace(greeting="hi"), dataset_idx=2, tokenizer="TOK")


ROW = {"question": "why", "messages": [], "solution": "s"}


def test_a_function_is_called_with_configuration_and_index_and_its_row_is_read(tmp_path: Path) -> None:
    row = copy.deepcopy(ROW)
    example = bind(tmp_path, "plain", Layout.PAIRED)(row)
    assert (example.prompt, example.responses) == ("hi 2 why", ("a", "b"))
    assert example.columns == ROW and row == ROW


def test_a_function_serves_every_layout(tmp_path: Path) -> None:
    assert FunctionStrategy.layouts == frozenset(Layout)
    example = bind(tmp_path, "builtin", Layout.SINGLE)({"prompt": "q", "completion": "a"})
    assert (example.prompt, example.responses) == ("q", ("a",))


def test_a_transform_gets_the_tokenizer_by_the_names_it_asks_for(tmp_path: Path) -> None:
    assert bind(tmp_path, "tokens")(ROW).prompt == "TOK TOK None"
    assert bind(tmp_path, "bare")(ROW).prompt == "{}"


def test_columns_are_removed_as_the_function_says(tmp_path: Path) -> None:
    assert bind(tmp_path, "tokens")(ROW).columns == {"messages": [], "solution": "s", "answer": 1}
    assert bind(tmp_path, "bare")(ROW).columns == {}


def test_a_callable_without_a_signature_will_do(tmp_path: Path) -> None:
    assert bind(tmp_path, "builtin")({"prompt": "q"}).prompt == "q"


def test_a_failing_transform_is_a_bad_row_that_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"formats\.py:17: KeyError: 'absent', in the transform of formats\.fails"):
        bind(tmp_path, "fails")(ROW)
    with pytest.raises(RowError, match="^column 'question' is a statement$"):
        bind(tmp_path, "refuses")(ROW)
    with pytest.raises(RowError, match=r"the transform of formats\.none .* must return a row \(a dict\), got None"):
        bind(tmp_path, "none")(ROW)


def test_what_a_function_returns_is_checked(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nothing\(cfg, dataset_idx=…\) in .*formats\.py must return transform_fn, or .* got None"
    ):
        bind(tmp_path, "nothing")
    with pytest.raises(ConfigError, match=r"remove_columns must be a list of columns or \"__all__\", got 'question'"):
        bind(tmp_path, "misspelt")
    with pytest.raises(ConfigError, match=r"data\.format formats\.crashes: .*formats\.py:35: TypeError"):
        bind(tmp_path, "crashes")


def test_a_function_must_be_bound_before_it_parses() -> None:
    with pytest.raises(TypeError, match=r"rewards\.f is a function: FunctionStrategy\.bind"):
        FunctionStrategy(name="rewards.f").parse({})
