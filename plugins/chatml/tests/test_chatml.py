"""Every format of the family: its columns, and the exact text, written out by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import truing_chatml
from truing import ConfigError, Layout, RowError
from truing.registry import Registry
from truing.testing import check_dataset_strategy

PLAIN = "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
WITH_SYSTEM = "<|im_start|>system\nbe {kind}<|im_end|>\n" + PLAIN
SIDES = ("good<|im_end|>", "bad<|im_end|>")
COLUMNS = {
    "chatml": ("prompt", "chosen", "rejected"),
    "chatml.default": ("prompt", "chosen", "rejected"),
    "chatml.argilla": ("instruction", "chosen_response", "rejected_response"),
    "chatml.icr": ("input", "chosen", "rejected"),
    "chatml.intel": ("question", "chosen", "rejected"),
    "chatml.prompt_pairs": ("prompt", "chosen", "rejected"),
}
LABELED = {"chatml.argilla": "instruction", "chatml.intel": "question", "chatml.prompt_pairs": "prompt", "chatml.ultra": "prompt"}
REGISTRY = Registry.load(only=["chatml"])


def fmt(name: str, layout: Layout = Layout.PAIRED, **settings: Any) -> Any:
    return REGISTRY.get("dataset_strategy", name, layout=layout)(**settings)


def user(content: Any = "q?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def test_it_is_found_by_its_entry_point():
    (plugin,) = [plugin for plugin in REGISTRY.plugins if plugin.name == "chatml"]
    assert (plugin.problem, plugin.dist) == (None, "truing-chatml")
    assert sorted(plugin.names["dataset_strategy"]) == sorted([*COLUMNS, "chatml.ultra", "chatml.argilla_chat"])
    for layout in (Layout.PAIRED, Layout.ROLLOUT, Layout.SINGLE):
        assert {cls.name for cls in truing_chatml.FORMATS if layout in cls.layouts} == set(plugin.names["dataset_strategy"])
    assert {cls.name for cls in truing_chatml.FORMATS if Layout.LABELED in cls.layouts} == {*LABELED, "chatml.argilla_chat"}


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_chatml; truing_chatml.FORMATS[0](); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    ("said", "prompt"), [({}, PLAIN), ({"system": None}, PLAIN), ({"system": ""}, PLAIN), ({"system": "be {kind}"}, WITH_SYSTEM)]
)
def test_pairs_of_text(name, said, prompt):
    asked, good, bad = COLUMNS[name]
    row = {asked: "q?", good: "good", bad: "bad", "source": "web", **said}
    example = fmt(name).parse(row)
    assert (example.prompt, example.responses, example.columns) == (prompt, SIDES, {"source": "web"})
    example = fmt(name, Layout.ROLLOUT).parse({**row, "answer": 3})
    assert (example.prompt, example.responses, example.columns) == (prompt, (), {"source": "web", "answer": 3})
    assert fmt(name, Layout.ROLLOUT).parse({asked: "q?", **said}).prompt == prompt
    for single in (row, {asked: "q?", "completion": "good", **said}):
        example = fmt(name, Layout.SINGLE).parse(single)
        assert (example.prompt, example.responses) == (prompt, SIDES[:1])
    check_dataset_strategy(
        type(fmt(name)), [row], [{**row, asked: 3}, {**row, good: ""}, {**row, bad: "good"}, {**row, "system": 1}]
    )


def test_white_space_and_braces_are_content():
    row = {"system": "  ", "question": " {q} {{}}\n", "chosen": "\n{a} ", "rejected": "%s"}
    example = fmt("chatml.intel").parse(row)
    assert example.prompt == "<|im_start|>system\n  <|im_end|>\n<|im_start|>user\n {q} {{}}\n<|im_end|>\n<|im_start|>assistant\n"
    assert example.responses == ("\n{a} <|im_end|>", "%s<|im_end|>")


TEXT = st.text(min_size=1, max_size=20).filter(str.strip)


@given(TEXT, TEXT, TEXT, st.none() | st.text(max_size=20))
def test_content_is_never_changed(question, chosen, rejected, said):
    if chosen == rejected or any(text.endswith("<|im_end|>") for text in (chosen, rejected)):
        return
    example = fmt("chatml.prompt_pairs").parse({"prompt": question, "chosen": chosen, "rejected": rejected, "system": said})
    before = "<|im_start|>system\n" + said + "<|im_end|>\n" if said else ""
    assert example.prompt == before + "<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n"
    assert example.responses == (chosen + "<|im_end|>", rejected + "<|im_end|>")


def test_a_response_that_ends_already_gets_no_second_end():
    example = fmt("chatml.intel").parse({"question": "q?", "chosen": "good<|im_end|>", "rejected": "bad"})
    assert example.responses == SIDES
    with pytest.raises(RowError, match="chosen equals rejected"):
        fmt("chatml.intel").parse({"question": "q?", "chosen": "good<|im_end|>", "rejected": "good"})


@pytest.mark.parametrize("name", ["chatml", "chatml.default"])
def test_the_default_takes_the_first_column_that_is_there(name):
    for asked in ("prompt", "input", "question", "instruction"):
        assert fmt(name).parse({asked: "q?", "chosen_response": "good", "rejected_response": "bad"}).responses == SIDES
    row = {"prompt": None, "instruction": "no", "question": "q?", "chosen": "good", "rejected": "bad"}
    example = fmt(name).parse(row)
    assert example.prompt == PLAIN and example.columns == {"prompt": None, "instruction": "no"}
    assert example.notes == ("column 'question' read, though there is 'instruction' too",)
    with pytest.raises(
        RowError, match="none of the columns 'prompt', 'input', 'question', 'instruction' is there; the row has 'chosen'"
    ):
        fmt(name).parse({"chosen": "good", "rejected": "bad"})


@pytest.mark.parametrize("name", LABELED)
@pytest.mark.parametrize(("label", "read", "notes"), [(True, True, 0), (0, False, 1), ("true", True, 1)])
def test_labelled_text(name, label, read, notes):
    row = {LABELED[name]: "q?", "completion": "good", "label": label, "system": "be {kind}", "id": 1}
    example = fmt(name, Layout.LABELED).parse(row)
    assert (example.prompt, example.responses, example.label) == (WITH_SYSTEM, SIDES[:1], read)
    assert example.columns == {"id": 1} and len(example.notes) == notes
    assert fmt(name, Layout.LABELED).parse({**row, "system": None}).prompt == PLAIN
    check_dataset_strategy(type(fmt(name, Layout.LABELED)), [row], [{**row, "label": "maybe"}, {**row, "label": None}])


def test_ultra_reads_the_last_assistant_message():
    row = {
        "prompt": "q?",
        "chosen": [user("other"), assistant("first"), user("more"), assistant("good"), user("thanks")],
        "rejected": [assistant("bad")],
    }
    example = fmt("chatml.ultra").parse({**row, "system": "be {kind}"})
    assert (example.prompt, example.responses) == (WITH_SYSTEM, SIDES)
    note = "row(s) of which only the last assistant message of 'chosen' is read: the others are not the prompt's"
    assert example.notes == (note,)
    assert fmt("chatml.ultra", Layout.SINGLE).parse(row).notes == (note,)
    assert fmt("chatml.ultra", Layout.SINGLE).parse(row).responses == SIDES[:1]
    refused = [{**row, "chosen": []}, {**row, "chosen": [user()]}, {**row, "rejected": [assistant(None)]}, {**row, "rejected": 3}]
    check_dataset_strategy(type(fmt("chatml.ultra")), [row], refused)


@pytest.mark.parametrize(
    ("turns", "system_column", "known"),
    [
        ([assistant("good")], None, True),
        ([user("q?"), assistant("good")], None, True),
        ([system("be {kind}"), user("q?"), assistant("good")], "be {kind}", True),
        ([user("q?"), assistant("good")], "be {kind}", True),
        ([system("be {kind}"), user("q?"), assistant("good")], None, False),
        ([system("be rude"), user("q?"), assistant("good")], "be {kind}", False),
        ([user("other"), assistant("good")], None, False),
        ([user("q?"), assistant("first"), user("more"), assistant("good")], None, False),
        ([user("q?"), assistant("good"), user("thanks")], None, False),
    ],
)
def test_ultra_says_which_messages_it_leaves_out(turns, system_column, known):
    row = {"prompt": "q?", "system": system_column, "chosen": turns, "rejected": [assistant("bad")]}
    note = "row(s) of which only the last assistant message of 'chosen' is read: the others are not the prompt's"
    assert fmt("chatml.ultra").parse(row).notes == (() if known else (note,))


BEFORE = [system("be {kind}"), user("hi"), assistant("yo"), user()]
LONG = (
    "<|im_start|>system\nbe {kind}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
)


def test_argilla_chat_has_all_turns_in_the_prompt():
    row = {"chosen": [*BEFORE, assistant("good")], "rejected": [*BEFORE, assistant("bad")], "margin": 2}
    example = fmt("chatml.argilla_chat").parse(row)
    assert (example.prompt, example.responses, example.margin) == (LONG, SIDES, 2)
    assert fmt("chatml.argilla_chat", Layout.ROLLOUT).parse({"chosen": row["chosen"]}).prompt == LONG
    assert fmt("chatml.argilla_chat", Layout.ROLLOUT).parse({"chosen": BEFORE}).prompt == LONG
    single = fmt("chatml.argilla_chat", Layout.SINGLE).parse(row)
    assert (single.prompt, single.responses) == (LONG, SIDES[:1])
    silent = {side: [system(""), user(), assistant(text)] for side, text in (("chosen", "good"), ("rejected", "bad"))}
    assert fmt("chatml.argilla_chat").parse(silent).prompt == PLAIN


def test_argilla_chat_compares_role_and_content_only():
    row = {"chosen": [{**user(), "id": 1}, assistant("good")], "rejected": [{**user(), "id": 2}, assistant("bad")]}
    assert fmt("chatml.argilla_chat").parse(row).prompt == PLAIN


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ([user(), assistant("a")], [user("other"), assistant("b")], "must be the same messages up to the last one"),
        ([assistant("a")], [assistant("b")], "one message each: there is nothing to answer"),
        ([user()], [user(), assistant("b")], "the last message of column 'chosen' must be the assistant's, got role 'user'"),
        ([user(), assistant("a")], "b", "column 'rejected' must be a list of messages, got str 'b'"),
        ([user(), assistant(" ")], [user(), assistant("b")], "the last message of column 'chosen' is empty"),
        ([{"role": "tool", "content": "4"}, assistant("a")], None, r"chosen\[0\] has the role 'tool', and chatml has turns for"),
        ([user(), {**assistant(None), "tool_calls": [{}]}], None, r"chosen\[1\] has tool calls and no content"),
    ],
)
def test_argilla_chat_names_what_is_wrong(chosen, rejected, message):
    with pytest.raises(RowError, match=message):
        fmt("chatml.argilla_chat").parse({"chosen": chosen, "rejected": rejected})


@pytest.mark.parametrize("layout", [Layout.LABELED, Layout.SINGLE])
@pytest.mark.parametrize(
    "row",
    [
        {"chosen": BEFORE, "completion": [assistant("good")]},
        {"completion": [*BEFORE, assistant("good")]},
        {"chosen": None, "completion": [*BEFORE, assistant("good")]},
        {"chosen": [*BEFORE, assistant("other")], "completion": [*BEFORE, assistant("good")]},
    ],
)
def test_argilla_chat_of_one_response(row, layout):
    example = fmt("chatml.argilla_chat", layout).parse({**row, "label": True})
    assert (example.prompt, example.responses) == (LONG, SIDES[:1])
    assert example.label is (True if layout is Layout.LABELED else None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [user()]}, "column 'completion' is missing"),
        ({"completion": [assistant("a")]}, "chosen and completion together must have a message of another role"),
        ({"chosen": [assistant("a")], "completion": [assistant("a")]}, "must have a message of another role"),
        ({"completion": [user(), assistant("x"), assistant("a")]}, "must have a message of another role"),
        ({"completion": [user()]}, "the last message of column 'completion' must be the assistant's, got role 'user'"),
        ({"chosen": [user("x")], "completion": [user(), assistant("a")]}, "differ in the messages before the response"),
        ({"completion": [user(), assistant("a")], "label": 2}, "column 'label' must be true or false"),
    ],
)
def test_argilla_chat_of_one_response_names_what_is_wrong(row, message):
    with pytest.raises(RowError, match=message):
        fmt("chatml.argilla_chat", Layout.LABELED).parse({"label": True, **row})


def test_columns_can_be_renamed():
    renamed = fmt("chatml.intel", field_prompt="ask", field_system="role", field_chosen=("no", "win"), field_rejected="lose")
    row = {"ask": "q?", "role": "be {kind}", "win": "good", "lose": "bad"}
    assert (renamed.parse(row).prompt, renamed.parse(row).responses) == (WITH_SYSTEM, SIDES)
    check_dataset_strategy(renamed, [row], [{"question": "q?"}])
    labeled = fmt("chatml.intel", Layout.LABELED, field_completion="text", field_label="good")
    assert labeled.parse({"question": "q?", "text": "good", "good": False}).label is False


def test_settings_show_the_columns():
    fields = {field.name: field.default for field in attrs.fields(type(fmt("chatml.argilla")))}
    assert fields == {
        "field_prompt": "instruction",
        "field_system": "system",
        "field_chosen": "chosen_response",
        "field_rejected": "rejected_response",
    }


def test_a_layout_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"'chatml.icr' is for the layouts paired, rollout, single, not labeled"):
        fmt("chatml.icr", Layout.LABELED)
