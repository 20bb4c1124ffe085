"""`chat_template`: what it reads in each layout, under the data's own names, and every row that it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import RowError
from truing.testing import check_dataset_strategy
from truing_chat_template import FORMATS
from truing_chat_template.default import ChatTemplateAnswer, ChatTemplateLabel, ChatTemplatePair, ChatTemplatePrompt


def user(content: Any = "q", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any = "a", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "s"}
PAIR = {"messages": [user()], "chosen": assistant(), "rejected": assistant("b")}
FIRST = [user("first"), assistant("one"), user()]


@pytest.mark.parametrize("side", ["a", assistant(), [assistant()], [*FIRST, assistant()], [user("first"), assistant()]])
def test_an_answer_is_text_or_a_message_or_the_last_of_a_list(side):
    example = ChatTemplatePair().parse({"messages": FIRST, "chosen": side, "rejected": "b", "margin": 2, "id": 7})
    assert example.prompt == tuple(FIRST)
    assert example.responses == ((assistant(),), (assistant("b"),))
    assert (example.margin, example.columns) == (2.0, {"id": 7})


def test_messages_before_an_answer_that_are_not_the_prompt_are_said():
    assert not ChatTemplatePair().parse({**PAIR, "chosen": [user(), assistant()]}).notes
    example = ChatTemplatePair().parse({**PAIR, "chosen": [user("another"), assistant()]})
    assert example.notes == ("row(s) of which only the last message of 'chosen' is read: those before it are not the prompt's",)
    with_system = {**PAIR, "system": "s", "chosen": [user(), assistant()]}
    assert not ChatTemplatePair().parse(with_system).notes


def test_text_is_one_user_turn_and_the_system_column_comes_first():
    example = ChatTemplatePair().parse({**PAIR, "messages": "q", "system": "s"})
    assert example.prompt == (SYSTEM, user())
    for system in ("", None):
        assert ChatTemplatePair().parse({**PAIR, "system": system}).prompt == (user(),)
    assert ChatTemplatePair().parse({**PAIR, "messages": [SYSTEM, user()], "system": "s"}).prompt == (SYSTEM, user())


def test_the_other_layouts_split_before_the_last_message():
    row = {"messages": [user(), assistant()], "label": "true", "id": 7}
    labeled = ChatTemplateLabel().parse(row)
    assert (labeled.prompt, labeled.responses, labeled.label) == ((user(),), ((assistant(),),), True)
    assert (labeled.notes, labeled.columns) == (("labels 'true' read as true",), {"id": 7})
    single = ChatTemplateAnswer().parse({**row, "tools": '[{"name": "f", "x": null}]'})
    assert (single.prompt, single.responses, single.tools) == ((user(),), ((assistant(),),), [{"name": "f"}])


def test_a_prompt_is_the_conversation_without_an_answer_at_its_end():
    assert ChatTemplatePrompt().parse({**PAIR, "answer": "4"}).columns == {"answer": "4"}
    example = ChatTemplatePrompt().parse({"messages": [user(), assistant()]})
    assert example.prompt == (user(),)
    assert example.notes == ("row(s) of which 'messages' ends with an answer: it is left out",)


def test_names_of_the_data_are_mapped():
    strategy = ChatTemplatePair(
        field_messages="turns",
        field_chosen="good",
        field_rejected="bad",
        field_system="rules",
        message_property_mappings={"role": "who", "content": "says", "name": "id"},
        roles={"user": ("customer",), "assistant": ("agent", "bot")},
    )
    turns = [{"who": "customer", "says": "q", "id": "x"}, {"who": "bot", "says": "one"}, {"who": "human", "says": "r"}]
    row = {"turns": turns, "good": {"who": "agent", "says": "a", "role": "lead"}, "bad": "b", "rules": "s"}
    example = strategy.parse(row)
    assert example.prompt == (SYSTEM, user(name="x"), assistant("one"), user("r"))
    assert example.responses == ((assistant(),), (assistant("b"),))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"roles": {"usr": ("x",)}}, "roles names 'usr'; did you mean 'user'"),
        ({"roles": {"user": ("x",), "assistant": ("x",)}}, "roles gives 'x' to both user and assistant; one name is one role"),
        (
            {"message_property_mappings": {"contents": "value"}},
            "message_property_mappings names 'contents'; did you mean 'content'",
        ),
    ],
)
def test_settings_that_would_map_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplatePair(**wrong)


def test_the_template_may_be_another_than_the_models():
    assert ChatTemplatePair().parse(PAIR).chat_template is None
    assert "<|im_start|>" in ChatTemplatePair(chat_template="chatml").parse(PAIR).chat_template
    assert ChatTemplatePrompt(chat_template="{{ 1 }}").parse(PAIR).chat_template == "{{ 1 }}"


REFUSED = [
    (ChatTemplatePair, {**PAIR, "messages": [user(), assistant()]}, "column 'messages' ends with the assistant's message"),
    (ChatTemplatePair, {**PAIR, "messages": ""}, "column 'messages' is empty"),
    (ChatTemplatePair, {**PAIR, "messages": 3}, "column 'messages' must be a list of messages, got int 3"),
    (ChatTemplatePair, {**PAIR, "messages": []}, "column 'messages' is an empty list"),
    (ChatTemplatePair, {**PAIR, "messages": ["q"]}, "messages[0] must be a message such as {role: user, content: ...}, got 'q'"),
    (ChatTemplatePair, {**PAIR, "messages": [{"from": "human"}]}, "message_property_mappings says how the data names these keys"),
    (
        ChatTemplatePair,
        {**PAIR, "messages": [{"role": "customer", "content": "q"}]},
        "messages[0] has the role 'customer'; known are system, developer, user, assistant, tool, human, gpt",
    ),
    (ChatTemplatePair, {**PAIR, "messages": [user(3)]}, "messages[0] must have text as its content, got int 3"),
    (ChatTemplatePair, {**PAIR, "system": 3}, "column 'system' must be text, got int 3"),
    (
        ChatTemplatePair,
        {**PAIR, "messages": [SYSTEM, user()], "system": "t"},
        "columns 'system' and 'messages' have different system turns; keep one of them",
    ),
    (ChatTemplatePair, {**PAIR, "chosen": None}, "column 'chosen' is null"),
    (ChatTemplatePair, {**PAIR, "chosen": " "}, "column 'chosen' is empty"),
    (ChatTemplatePair, {**PAIR, "chosen": user()}, "the last message of column 'chosen' must be the assistant's, got role 'user'"),
    (ChatTemplatePair, {**PAIR, "chosen": [assistant("")]}, "the last message of column 'chosen' is empty"),
    (ChatTemplatePair, {**PAIR, "chosen": "b"}, "chosen equals rejected"),
    (ChatTemplatePair, {**PAIR, "tools": "{"}, "column 'tools' must be a list of tool descriptions, got str '{'"),
    (ChatTemplateAnswer, {"messages": [user()]}, "the last message of column 'messages' must be the assistant's, got role 'user'"),
    (ChatTemplateAnswer, {"messages": [assistant()]}, "column 'messages' is one message, the assistant's"),
    (ChatTemplateLabel, {"messages": [user(), assistant()], "label": 2}, "column 'label' must be true or false"),
    (ChatTemplateLabel, {"messages": [user(), assistant()]}, "column 'label' is missing"),
    (ChatTemplatePrompt, {"messages": [assistant()]}, "column 'messages' must have a message of another role"),
    (ChatTemplatePrompt, {"messages": [user(), assistant(), assistant()]}, "there is nothing to answer"),
]


@pytest.mark.parametrize(("strategy", "row", "message"), REFUSED)
def test_a_bad_row_is_refused_with_column_value_and_remedy(strategy, row, message):
    with pytest.raises(RowError) as failure:
        strategy().parse(row)
    assert message in str(failure.value)


ROWS = {
    "ChatTemplatePair": PAIR,
    "ChatTemplatePrompt": PAIR,
    "ChatTemplateAnswer": {"messages": [user(), assistant()]},
    "ChatTemplateLabel": {"messages": [user(), assistant()], "label": True},
}
WHOLE = {"chosen": [user(), assistant()], "rejected": [user(), assistant("b")]}


@pytest.mark.parametrize("cls", FORMATS)
def test_every_format_keeps_its_promises(cls):
    row = ROWS.get(cls.__name__.removesuffix("Default"), WHOLE)
    check_dataset_strategy(cls, [row], [{}, {"messages": 1, "chosen": 1, "rejected": 1}])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("a {\u00e9", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), inner),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool_call", "x"]), "content": VALUES}),
    max_size=4,
)
COLUMNS = st.sampled_from(["messages", "system", "prompt", "chosen", "rejected", "label", "margin", "tools"])


@settings(deadline=None)
@given(st.sampled_from(FORMATS), st.dictionaries(COLUMNS, VALUES | MESSAGES))
def test_any_row_is_read_or_refused_and_never_changed(cls, row):
    before = copy.deepcopy(row)
    recognises = getattr(cls, "recognises", None)
    if recognises is not None:
        recognises(row)
    try:
        cls().parse(row)
    except RowError as error:
        assert str(error)
    assert row == before


def test_only_rows_that_could_be_no_others_are_recognised():
    assert ChatTemplatePair.recognises(PAIR)
    assert not ChatTemplatePair.recognises({**PAIR, "messages": "q"})
    assert not ChatTemplatePair.recognises({**PAIR, "prompt": "q"})
    assert not ChatTemplatePair.recognises({**PAIR, "rejected": None})
    assert ChatTemplatePrompt.recognises({"messages": [user()]})
    assert not ChatTemplatePrompt.recognises({"messages": [user()], "prompt": "q"})
    assert not ChatTemplatePrompt.recognises({"messages": [user(), assistant()], "rejected_response": "b"})
