"""The built-in formats: what each reads, and every row that it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.data.strategies import (
    BUILTIN,
    Passthrough,
    Preference,
    PreferenceChosen,
    PreferenceLabels,
    PreferencePrompt,
    PromptText,
    Ranked,
    ResponseText,
    Unpaired,
)
from truing.errors import RowError
from truing.loss import Layout


def user(content: Any = "q", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any = "a", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
LABELED = {"prompt": "q", "completion": "a", "label": True}
RANKED = {"prompt": "q", "answers": [{"answer": "a", "rank": 0}, {"answer": "b", "rank": 1}]}


def test_each_name_and_layout_is_served_once() -> None:
    served = [(strategy.name, layout) for strategy in BUILTIN for layout in strategy.layouts]
    assert sorted(served, key=str) == sorted(
        [
            ("preference", Layout.PAIRED),
            ("preference", Layout.LABELED),
            ("preference", Layout.ROLLOUT),
            ("preference", Layout.SINGLE),
            ("text", Layout.ROLLOUT),
            ("text", Layout.SINGLE),
            ("passthrough", Layout.PAIRED),
            ("unpaired", Layout.LABELED),
            ("ranked", Layout.RANKED),
            ("ranked", Layout.PAIRED),
        ],
        key=str,
    )


def test_preference_reads_text_and_keeps_other_columns() -> None:
    example = Preference().parse({**PAIR, "margin": "0.5", "source": "web"})
    assert (example.prompt, example.responses, example.margin, example.columns) == ("q", ("a", "b"), 0.5, {"source": "web"})
    assert example.add_eos and example.tools is None


def test_preference_reads_messages_and_tools() -> None:
    tools = [{"name": "search"}]
    example = Preference().parse({"prompt": [user()], "chosen": [assistant()], "rejected": [assistant("b")], "tools": tools})
    assert example.prompt == (user(),)
    assert example.responses == ((assistant(),), (assistant("b"),))
    assert example.tools == tools


def test_a_preference_row_is_two_labelled_samples() -> None:
    sides = [(side.prompt, side.responses, side.label, side.margin) for side in PreferenceLabels().parse({**PAIR, "margin": 0.5})]
    assert sides == [("q", ("a",), True, None), ("q", ("b",), False, None)]


def test_the_prompt_may_be_what_both_sides_begin_with() -> None:
    shared = [{"role": "system", "content": "s"}, user(), assistant("first"), user("more")]
    row = {"chosen": [*shared, assistant()], "rejected": [*shared, assistant("b")]}
    example = Preference().parse(row)
    assert example.prompt == tuple(shared)
    assert example.responses == ((assistant(),), (assistant("b"),))
    assert Preference().parse({**row, "prompt": None}).prompt == tuple(shared)
    assert PreferencePrompt().parse(row).prompt == tuple(shared)


def test_null_keys_of_messages_vanish() -> None:
    row = {**PAIR, "prompt": [user(name=None)], "chosen": [assistant(tool_calls=None)], "rejected": [assistant("b")]}
    example = Preference().parse(row)
    assert example.prompt == (user(),) and example.responses[0] == (assistant(),)


def test_a_tool_call_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    example = Preference().parse({"prompt": [user()], "chosen": [call], "rejected": [assistant()]})
    assert example.responses[0] == ({"role": "assistant", "tool_calls": call["tool_calls"]},)


def test_prompt_formats_need_the_prompt_only() -> None:
    assert PreferencePrompt().parse({"prompt": "q", "answer": 3}).columns == {"answer": 3}
    assert PreferencePrompt().parse(PAIR).columns == {}
    assert PromptText().parse({"text": "t", "answer": 3}).prompt == "t"
    assert PromptText().parse({"text": "t", "prompt": None}).prompt == "t"
    assert PromptText().parse({"prompt": [user()], "text": "t"}).columns == {"text": "t"}


def test_the_chosen_side_is_a_response() -> None:
    example = PreferenceChosen().parse({**PAIR, "margin": 1.0, "source": "web"})
    assert (example.prompt, example.responses, example.margin, example.columns) == ("q", ("a",), None, {"source": "web"})
    conversation = [user(), assistant("first"), user("more")]
    example = PreferenceChosen().parse({"chosen": [*conversation, assistant()], "rejected": [*conversation, assistant("b")]})
    assert (example.prompt, example.responses) == (tuple(conversation), ((assistant(),),))


def test_a_response_is_a_completion_the_last_message_or_all_text() -> None:
    example = ResponseText().parse({"prompt": "q", "completion": "a", "source": "web"})
    assert (example.prompt, example.responses, example.columns) == ("q", ("a",), {"source": "web"})
    example = ResponseText().parse({"prompt": [user()], "completion": [assistant()], "messages": None})
    assert (example.prompt, example.responses, example.columns) == ((user(),), ((assistant(),),), {"messages": None})
    tools = [{"name": "search"}]
    turns = [user(), assistant(tool_calls=[{"function": {"name": "search"}}]), {"role": "tool", "content": "r"}, assistant("b")]
    example = ResponseText().parse({"prompt": "q", "messages": turns, "text": "t", "tools": tools})
    assert (example.prompt, example.responses, example.tools) == (tuple(turns[:-1]), ((turns[-1],),), tools)
    assert example.columns == {"prompt": "q", "text": "t"}
    example = ResponseText().parse({"text": "t", "source": "web"})
    assert (example.prompt, example.responses, example.columns) == ("", ("t",), {"source": "web"}) and example.add_eos


def test_passthrough_adds_nothing_and_takes_an_empty_prompt() -> None:
    example = Passthrough().parse({**PAIR, "prompt": "", "id": 1})
    assert (example.prompt, example.responses, example.add_eos, example.columns) == ("", ("a", "b"), False, {"id": 1})


@pytest.mark.parametrize(
    ("given_label", "label", "noted"),
    [
        (True, True, 0),
        (0, False, 1),
        (1, True, 1),
        ("true", True, 1),
        ("False", False, 1),
        (1.0, True, 1),
        (0.0, False, 1),
        ("1.0", True, 1),
    ],
)
def test_labels_are_coerced_aloud(given_label: Any, label: bool, noted: int) -> None:
    example = Unpaired().parse({**LABELED, "label": given_label})
    assert example.label is label
    assert example.notes == ((f"labels {given_label!r} read as {str(label).lower()}",) if noted else ())


def test_ranked_sorts_best_first_and_closes_gaps() -> None:
    answers = [{"answer": "c", "rank": 7}, {"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}, {"answer": "d", "rank": 9}]
    example = Ranked().parse({"prompt": "q", "answers": answers})
    assert (example.responses, example.ranks) == (("a", "b", "c", "d"), (0, 0, 1, 2))


def test_answers_become_messages_behind_a_prompt_of_messages() -> None:
    assert Ranked().parse({**RANKED, "prompt": [user()]}).responses == ((assistant("a"),), (assistant("b"),))


REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (
        Preference,
        {"prompt": "q", "chosen": "a", "rejcted": "b"},
        "column 'rejected' is missing; did you mean 'rejcted'?; the row has 'prompt', 'chosen', 'rejcted'",
    ),
    (Preference, {**PAIR, "chosen": None}, "column 'chosen' is null"),
    (Preference, {**PAIR, "chosen": ""}, "column 'chosen' is empty (''); it needs text"),
    (Preference, {**PAIR, "rejected": " \n"}, "column 'rejected' is empty"),
    (Preference, {**PAIR, "prompt": ""}, "column 'prompt' is empty"),
    (Preference, {**PAIR, "rejected": "a"}, "chosen equals rejected ('a')"),
    (Preference, {**PAIR, "chosen": 3}, "column 'chosen' must be text or a list of messages, got int 3"),
    (Preference, {**PAIR, "chosen": []}, "column 'chosen' is an empty list"),
    (Preference, {**PAIR, "chosen": "x" * 500, "rejected": "x" * 500}, "…); a pair needs"),
    (Preference, {**PAIR, "margin": "wide"}, "column 'margin' must be a finite number, got 'wide'"),
    (Preference, {**PAIR, "margin": float("nan")}, "column 'margin' must be a finite number, got nan"),
    (Preference, {**PAIR, "margin": True}, "column 'margin' must be a finite number, got True"),
    (Preference, {"chosen": "a", "rejected": "b"}, "column 'prompt' is missing; it is optional only where"),
    (Preference, {**PAIR, "chosen": [assistant()]}, "the prompt is text and column 'chosen' is messages"),
    (Preference, {**PAIR, "prompt": [user()]}, "the prompt is messages and column 'chosen' is text"),
    (Preference, {**PAIR, "prompt": [assistant()]}, "prompt ends with an assistant message"),
    (
        Preference,
        {**PAIR, "prompt": [{"role": "human", "content": "q"}]},
        "prompt[0] has the role 'human'; known roles are system, developer, user",
    ),
    (Preference, {**PAIR, "prompt": ["q"]}, "prompt[0] must be a message such as {role: user, content: ...}, got 'q'"),
    (Preference, {**PAIR, "prompt": [user(["part"])]}, "prompt[0] must have text as its content, got list ['part']"),
    (Preference, {**PAIR, "prompt": [user(None)]}, "prompt[0] must have text as its content, got NoneType None"),
    (Preference, {**PAIR, "prompt": [user()], "chosen": [user()]}, "chosen must be one assistant message, got 'user'"),
    (
        Preference,
        {**PAIR, "prompt": [user()], "chosen": [assistant(), user()]},
        "chosen must be one assistant message, got 'assistant, user'",
    ),
    (Preference, {**PAIR, "prompt": [user()], "chosen": [assistant(" ")]}, "the last message of column 'chosen' is empty"),
    (Preference, {**PAIR, "tools": "search"}, "column 'tools' must be a list of tool descriptions, got str 'search'"),
    (
        Preference,
        {"chosen": [user(), assistant()], "rejected": [user("x"), assistant("b")]},
        "must be the same messages up to the last one",
    ),
    (
        Preference,
        {"chosen": [user(), user("x")], "rejected": [user(), assistant("b")]},
        "the last message of column 'chosen' must be the assistant's, got role 'user'",
    ),
    (
        Preference,
        {"chosen": [user(), assistant()], "rejected": [user(), assistant("")]},
        "the last message of column 'rejected' is empty",
    ),
    (Preference, {"chosen": [user(), assistant()], "rejected": [user(), assistant()]}, "chosen equals rejected"),
    (Preference, {"chosen": [assistant()], "rejected": [assistant("b")]}, "there is nothing to answer"),
    (PreferencePrompt, {"text": "q"}, "column 'prompt' is missing; the row has 'text'"),
    (PromptText, {"question": "q"}, "column 'prompt' is missing"),
    (PromptText, {"prompt": " "}, "column 'prompt' is empty"),
    (PromptText, {"text": ""}, "column 'text' is empty"),
    (
        ResponseText,
        {"prompt": "q", "answer": "a"},
        "the row has no column 'completion' (beside 'prompt'), 'messages' or 'text' with a value; it has 'prompt', 'answer'",
    ),
    (ResponseText, {"completion": "a"}, "column 'prompt' is missing"),
    (ResponseText, {"prompt": "q", "completion": [assistant()]}, "the prompt is text and column 'completion' is messages"),
    (
        ResponseText,
        {"prompt": [user()], "completion": [assistant(), user(), assistant()]},
        "completion must be one assistant message, got 'assistant, user, assistant'; the turns before it belong in the prompt",
    ),
    (ResponseText, {"messages": [user(), assistant(), user()]}, "the last message of column 'messages' must be the assistant's"),
    (ResponseText, {"messages": [assistant()]}, "column 'messages' is one message, the assistant's: there is nothing to answer"),
    (ResponseText, {"messages": [user(), assistant(" ")]}, "the last message of column 'messages' is empty"),
    (ResponseText, {"text": " "}, "column 'text' is empty"),
    (PreferenceChosen, {"prompt": "q", "chosen": "a"}, "column 'rejected' is missing"),
    (Passthrough, {**PAIR, "prompt": [user()]}, "column 'prompt' must be text, got list"),
    (Passthrough, {**PAIR, "chosen": ""}, "column 'chosen' is empty"),
    (Passthrough, {**PAIR, "rejected": "a"}, "chosen equals rejected"),
    (Unpaired, {**LABELED, "completion": ""}, "column 'completion' is empty"),
    (Unpaired, {**LABELED, "completion": [assistant()]}, "the prompt is text and column 'completion' is messages"),
    (
        Unpaired,
        {**LABELED, "label": "yes"},
        "column 'label' must be true or false (0, 1, \"true\" and \"false\" will do), got 'yes'",
    ),
    (Unpaired, {**LABELED, "label": 2}, "must be true or false"),
    (Unpaired, {**LABELED, "label": 0.5}, "must be true or false"),
    (Unpaired, {**LABELED, "label": None}, "column 'label' is null"),
    (Ranked, {**RANKED, "answers": RANKED["answers"][:1]}, "column 'answers' must be a list of two or more {answer, rank}"),
    (Ranked, {**RANKED, "answers": ["a", "b"]}, "answers[0] must be {answer, rank}, got 'a'"),
    (Ranked, {**RANKED, "answers": [{"answer": "a", "rank": "x"}] * 2}, "column 'rank' must be a finite number, got 'x'"),
    (Ranked, {**RANKED, "answers": [{"answer": "a", "rank": 0}, {"answer": "", "rank": 1}]}, "column 'answers[1].answer' is empty"),
    (
        Ranked,
        {**RANKED, "answers": [{"answer": "a", "rank": 0}, {"answer": "a", "rank": 1}]},
        "column 'answers' has the same answer twice: 'a'",
    ),
]


@pytest.mark.parametrize(("strategy", "row", "message"), REFUSED)
def test_a_bad_row_is_refused_with_column_value_and_remedy(strategy: type[Any], row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as failure:
        strategy().parse(row)
    assert message in str(failure.value)
    assert len(str(failure.value)) < 300


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("a {\u00e9", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "answer", "rank"]), inner),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["prompt", "chosen", "rejected", "text", "messages", "completion", "label", "answers", "margin", "tools"])


@settings(deadline=None)
@given(st.sampled_from(BUILTIN), st.dictionaries(COLUMNS, VALUES))
def test_any_row_is_read_or_refused_and_never_changed(strategy: type[Any], row: dict[str, Any]) -> None:
    before = copy.deepcopy(row)
    try:
        strategy().parse(row)
    except RowError as error:
        assert str(error)
    assert row == before


@pytest.mark.parametrize("prompt", ["q", [user()]])
def test_sides_may_repeat_the_prompt(prompt: Any) -> None:
    row = {"prompt": prompt, "chosen": [user(), assistant()], "rejected": [user(), assistant("b")]}
    example = Preference().parse(row)
    assert (example.prompt, example.responses) == ((user(),), ((assistant(),), (assistant("b"),)))
    assert PreferencePrompt().parse(row).prompt == (user(),)


def test_sides_that_begin_with_another_prompt_are_refused() -> None:
    row = {"prompt": "other", "chosen": [user(), assistant()], "rejected": [user(), assistant("b")]}
    with pytest.raises(RowError, match=r"chosen\[0\] is .*'q'.*, the prompt has .*'other'.*; leave out column 'prompt' if both"):
        Preference().parse(row)
    row = {"prompt": [user(), assistant(), user("r")], "chosen": [user(), assistant()], "rejected": [user(), assistant("b")]}
    with pytest.raises(RowError, match=r"chosen\[1\] is no turn, the prompt has .*'assistant'.*"):
        Preference().parse(row)
