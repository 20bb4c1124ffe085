"""The format of data that names none: chosen by the columns of the first row, and said aloud."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
from click.testing import CliRunner

from truing.cli import main
from truing.config import load_config
from truing.config.classes import TrainConfig, TrainerConfig
from truing.data import prepare_rows, with_formats
from truing.data.example import DatasetStrategy, Example
from truing.data.recognise import choose_format
from truing.errors import ConfigError, DataError, PluginError
from truing.hookspecs import hookimpl
from truing.loss import Layout
from truing.registry import Registry
from truing.testing import tiny_tokenizer

CORE = Registry.from_modules({})
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [CHAT[0], {"role": "assistant", "content": "b"}]
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
ANSWERS = [{"answer": "a", "rank": 0}, {"answer": "b", "rank": 1}]

KNOWN: list[tuple[Layout, dict[str, Any], str]] = [
    (Layout.PAIRED, PAIR, "preference"),
    (Layout.PAIRED, {**PAIR, "source": "web"}, "preference"),
    (Layout.PAIRED, {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": OTHER[1:]}, "preference"),
    (Layout.PAIRED, {"prompt": None, "chosen": CHAT, "rejected": OTHER}, "preference"),
    (Layout.ROLLOUT, PAIR, "preference"),
    (Layout.SINGLE, PAIR, "preference"),
    (Layout.ROLLOUT, {"prompt": "q", "answer": "4"}, "text"),
    (Layout.ROLLOUT, {"prompt": CHAT[:1]}, "text"),
    (Layout.ROLLOUT, {"text": "q"}, "text"),
    (Layout.ROLLOUT, {"query": "q", "system": "s"}, "text"),
    (Layout.ROLLOUT, {"prompt": "q", "answers": ANSWERS}, "text"),
    (Layout.SINGLE, {"prompt": "q", "completion": "a"}, "text"),
    (Layout.SINGLE, {"messages": CHAT}, "text"),
    (Layout.SINGLE, {"text": "a"}, "text"),
    (Layout.LABELED, {"prompt": "q", "completion": "a", "label": False}, "unpaired"),
    (Layout.LABELED, {"messages": CHAT, "label": 1}, "unpaired"),
    (Layout.RANKED, {"prompt": CHAT[:1], "answers": ANSWERS}, "ranked"),
]
UNKNOWN: list[tuple[Layout, dict[str, Any]]] = [
    (Layout.PAIRED, {"system": None, **PAIR}),  # for a later row may have one
    (Layout.PAIRED, {"system": "s", **PAIR}),  # which `preference` would leave out
    (Layout.PAIRED, {"chosen": "a", "rejected": "b"}),
    (Layout.PAIRED, {"question": "q", "chosen": "a", "rejected": "b"}),
    (Layout.PAIRED, {**PAIR, "rejected": None}),
    (Layout.PAIRED, {"chosen": 1, "rejected": 2, "prompt": "q"}),
    (Layout.PAIRED, {"messages": CHAT[:1], "chosen": CHAT[1:], "rejected": OTHER[1:]}),
    (Layout.ROLLOUT, {"question": "q", "answer": "4"}),
    (Layout.ROLLOUT, {"prompt": "q", "system": "s"}),
    (Layout.SINGLE, {"prompt": "q", "completion": "a", "label": False}),  # half of it may be bad text
    (Layout.SINGLE, {"prompt": "q", "text": "a"}),
    (Layout.SINGLE, {"messages": "q"}),
    (Layout.SINGLE, {"instruction": "q", "output": "a"}),
    (Layout.LABELED, {"prompt": "q", "completion": "a"}),
    (Layout.LABELED, {"prompt": "q", "messages": CHAT, "label": True}),
    (Layout.RANKED, {"prompt": "q", "answers": ["a", "b"]}),
    (Layout.RANKED, {}),
]


@pytest.mark.parametrize(("layout", "row", "name"), KNOWN)
def test_rows_that_could_be_no_other_are_recognised_and_can_be_read(layout: Layout, row: dict[str, Any], name: str) -> None:
    strategy = choose_format(row, layout, CORE)
    assert strategy.name == name
    assert isinstance(strategy.parse(row), Example)


@pytest.mark.parametrize(("layout", "row"), UNKNOWN)
def test_rows_that_nobody_knows_for_sure_are_not_guessed_at(layout: Layout, row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="data.format is not set, and no format knows the columns"):
        choose_format(row, layout, CORE)


def test_the_message_has_the_columns_and_the_formats() -> None:
    with pytest.raises(ConfigError) as failure:
        choose_format({"question": "q", "chosen": "a", "rejected": "b"}, Layout.PAIRED, CORE, "eval_data.format")
    assert str(failure.value) == (
        "eval_data.format is not set, and no format knows the columns 'question', 'chosen', 'rejected' for sure; set it to one of "
        "those for paired data (passthrough, preference, ranked), or to a function of yours, file.function; "
        "`truing explain data.format` says what each reads. The plainest is preference: Columns prompt, chosen and rejected, "
        "as text or as messages."
    )


def test_a_family_of_formats_is_named_once() -> None:
    named = {f"Q{name}": attrs.make_class(f"Q{index}", [], frozen=True) for index, name in enumerate("abc")}
    for cls, name in zip(named.values(), ("chat.one", "chat", "lone.kind"), strict=True):
        cls.name, cls.layouts, cls.parse = name, frozenset({Layout.RANKED}), lambda self, row: row
    module = SimpleNamespace(register_dataset_strategy=hookimpl(specname="register_dataset_strategy")(lambda: list(named.values())))
    with pytest.raises(ConfigError, match=r"for ranked data \(chat\.\*, lone\.kind, ranked\)"):
        choose_format({}, Layout.RANKED, Registry.from_modules({"chat": module}))


@attrs.frozen(kw_only=True)
class Sides(DatasetStrategy):
    """Reads the same columns as preference."""

    name: ClassVar[str] = "sides"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        return row["chosen"] is not None

    def parse(self, row: Mapping[str, Any]) -> Example:
        return Example(prompt="q", responses=("a", "b"))


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    return [Sides]


BOTH = Registry.from_modules({"sides": SimpleNamespace(register_dataset_strategy=register_dataset_strategy)})


def test_several_formats_are_named_and_none_is_taken() -> None:
    message = "the columns 'prompt', 'chosen', 'rejected' are those of several formats: preference, sides; set it to one of them"
    with pytest.raises(ConfigError, match=message):
        choose_format(PAIR, Layout.PAIRED, BOTH)


def test_a_format_that_fails_to_say_is_named() -> None:
    with pytest.raises(PluginError, match=r"the format sides failed to say .* \(KeyError: 'chosen'\); set data.format"):
        choose_format({"question": "q"}, Layout.PAIRED, BOTH)


RUN = """
recipe: align
method: dpo
model: {name: MODEL}
data: {path: rows.jsonl}
output: {dir: run}
"""


def configured(folder: Path, rows: str, text: str = RUN, *overrides: str) -> TrainConfig:
    (folder / "rows.jsonl").write_text(rows)
    (folder / "run.yaml").write_text(text)
    return load_config(folder / "run.yaml", overrides, registry=Registry.load(quiet=True))


def lines_of(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_first_row_that_can_be_read_decides_and_it_is_said(tmp_path: Path) -> None:
    config = configured(tmp_path, "{broken\n" + lines_of(PAIR), RUN.replace("output", "eval_data: {path: rows.jsonl}\noutput"))
    chosen, lines = with_formats(config, lambda: CORE)
    assert [source.format_name for source in (*chosen.data, *chosen.eval_data)] == ["preference", "preference"]
    assert lines == [
        f"format: preference, chosen by the columns 'prompt', 'chosen', 'rejected' of {key}; set {key}.format to say otherwise"
        for key in ("data", "eval_data")
    ]
    assert [source.format_name for source in config.data] == ["its columns say"]


def test_what_is_set_is_kept_and_nothing_is_looked_at(tmp_path: Path) -> None:
    config = configured(tmp_path, lines_of(PAIR), RUN, "data.format=passthrough", "data.path=absent.jsonl")
    assert with_formats(config, pytest.fail) == (config, [])


def test_rows_in_memory_are_looked_at_instead(tmp_path: Path) -> None:
    config = configured(tmp_path, "")
    assert with_formats(config, lambda: CORE, rows=[PAIR])[0].data[0].format_name == "preference"


@pytest.mark.parametrize(("rows", "message"), [("", "no rows: rows.jsonl has none that can be read"), ("{x\n", r"rows.jsonl:1: ")])
def test_data_without_a_row_is_an_error(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_formats(configured(tmp_path, rows), lambda: CORE)


def test_prepare_takes_no_dataset_without_a_format() -> None:
    with pytest.raises(ConfigError, match=r"data\.format is not set; truing\.data\.with_formats chooses one"):
        prepare_rows([PAIR], None, layout=Layout.PAIRED, tokenizer=tiny_tokenizer(), trainer=TrainerConfig(), context_length=None)


def test_check_says_which_format_and_fails_where_there_is_none(tmp_path: Path) -> None:
    configured(tmp_path, lines_of(PAIR))
    result = CliRunner().invoke(main, ["check", str(tmp_path / "run.yaml")])
    assert result.exit_code == 0
    assert "data      rows.jsonl as preference" in result.output
    assert "format: preference, chosen by the columns 'prompt', 'chosen', 'rejected' of data" in result.output
    configured(tmp_path, lines_of({"instruction": "q"}))
    assert (
        "no format knows the columns 'instruction' for sure"
        in CliRunner().invoke(main, ["check", str(tmp_path / "run.yaml")]).output
    )


def test_check_goes_on_where_the_data_is_not_there(tmp_path: Path) -> None:
    configured(tmp_path, lines_of(PAIR), RUN, "data.path=hub/set")
    result = CliRunner().invoke(main, ["check", str(tmp_path / "run.yaml"), "data.path=hub/set"])
    assert result.exit_code == 0 and "hub/set as its columns say" in result.output
