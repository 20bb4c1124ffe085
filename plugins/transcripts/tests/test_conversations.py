"""`sharegpt` and `swift`: conversations in a column, with a pair's sides or a label beside them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import RowError
from truing.testing import check_dataset_strategy
from truing_transcripts import FORMATS
from truing_transcripts.sharegpt import ShareGptAnswer, ShareGptLabel, ShareGptPair, ShareGptPrompt
from truing_transcripts.swift import SwiftAnswer, SwiftLabel, SwiftPair, SwiftPrompt

USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
HUMAN, GPT, WORSE = ({"from": who, "value": text} for who, text in (("human", "q"), ("gpt", "a"), ("gpt", "b")))
SHAREGPT = {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE}
SWIFT = {"messages": [USER, GOOD], "rejected_response": "b"}


def test_sharegpt_reads_a_pair():
    example = ShareGptPair().parse({**SHAREGPT, "margin": 2, "id": 7})
    assert (example.prompt, example.responses) == ((USER,), ((GOOD,), (BAD,)))
    assert (example.margin, example.columns) == (2.0, {"id": 7})
    assert ShareGptPair().parse({**SHAREGPT, "chosen": "a"}).responses == ((GOOD,), (BAD,))


def test_sharegpt_knows_the_roles():
    turns = [{"from": "system", "value": "s"}, HUMAN, GPT, {"from": "user", "value": "r"}]
    example = ShareGptPair().parse({**SHAREGPT, "conversations": turns})
    assert [message["role"] for message in example.prompt] == ["system", "user", "assistant", "user"]
    assert ShareGptPair().parse({**SHAREGPT, "system": "s"}).prompt == ({"role": "system", "content": "s"}, USER)


def test_sharegpt_in_the_other_layouts():
    row = {"conversations": [HUMAN, GPT], "label": False}
    labeled = ShareGptLabel().parse(row)
    assert (labeled.prompt, labeled.responses, labeled.label, labeled.columns) == ((USER,), ((GOOD,),), False, {})
    assert ShareGptAnswer().parse(row).responses == ((GOOD,),)
    assert ShareGptPrompt().parse(row).prompt == (USER,)
    assert ShareGptPrompt().parse({**SHAREGPT, "answer": "4"}).columns == {"answer": "4"}


CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}
CALLED = {"type": "function", "function": CALL}


def test_calls_of_tools_that_are_turns_become_the_assistants():
    """Neighbouring ones are one message with several calls; what a tool answers is a message of its own."""
    turns = [
        HUMAN,
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps([CALL])},
        {"from": "observation", "value": "4"},
        GPT,
    ]
    tools = [{"name": "add", "parameters": {"a": {"type": "int", "enum": None}}}]
    for given_tools in (tools, json.dumps(tools)):
        example = ShareGptAnswer().parse({"conversations": turns, "tools": given_tools})
        assert example.prompt[1:] == ({"role": "assistant", "tool_calls": [CALLED, CALLED]}, {"role": "tool", "content": "4"})
        assert example.tools == [{"name": "add", "parameters": {"a": {"type": "int"}}}]
    swift = [USER, {"role": "tool_call", "content": CALL}, {"role": "tool_response", "content": "4"}, GOOD]
    assert SwiftAnswer().parse({"messages": swift}).prompt[1]["tool_calls"] == [CALLED]


def test_swift_reads_the_last_turn_as_chosen():
    example = SwiftPair().parse({**SWIFT, "margin": 2, "id": 7})
    assert (example.prompt, example.responses) == ((USER,), ((GOOD,), (BAD,)))
    assert (example.margin, example.columns) == (2.0, {"id": 7})


@pytest.mark.parametrize(
    "rejected",
    [{"rejected_response": BAD}, {"rejected_response": [BAD]}, {"rejected_messages": [USER, BAD], "rejected_response": None}],
)
def test_swift_takes_the_rejected_side_in_several_shapes(rejected):
    assert SwiftPair().parse({"messages": [USER, GOOD], **rejected}).responses == ((GOOD,), (BAD,))


def test_swift_in_the_other_layouts():
    row = {"messages": [USER, GOOD], "label": 1}
    assert SwiftLabel().parse(row).label is True
    assert SwiftAnswer().parse({**SWIFT, "margin": 1}).columns == {}
    prompt = SwiftPrompt().parse({**SWIFT, "solution": "4"})
    assert (prompt.prompt, prompt.columns) == ((USER,), {"solution": "4"})


def test_every_name_can_be_another():
    strategy = SwiftPair(
        field_messages="turns",
        field_rejected_response="worse",
        message_property_mappings={"role": "who", "content": "says"},
        roles={"user": ("customer",)},
    )
    example = strategy.parse({"turns": [{"who": "customer", "says": "q"}, {"who": "assistant", "says": "a"}], "worse": "b"})
    assert (example.prompt, example.responses) == ((USER,), ((GOOD,), (BAD,)))


REFUSED = [
    (ShareGptPair, {**SHAREGPT, "conversations": [HUMAN, GPT]}, "column 'conversations' ends with the assistant's message"),
    (ShareGptPair, {**SHAREGPT, "rejected": GPT}, "chosen equals rejected"),
    (ShareGptPair, {**SHAREGPT, "rejected": HUMAN}, "the last message of column 'rejected' must be the assistant's"),
    (
        ShareGptPair,
        {**SHAREGPT, "conversations": [USER]},
        "conversations[0] must be a message such as {from: user, value: ...}, got {'role': 'user', 'content': 'q'}",
    ),
    (
        ShareGptPair,
        {**SHAREGPT, "conversations": [{"from": "narrator", "value": "x"}, HUMAN]},
        "conversations[0] has the role 'narrator'; known are",
    ),
    (ShareGptAnswer, {"conversations": [HUMAN, {"from": "function_call", "value": "add"}]}, "conversations[1] is a call of a tool"),
    (ShareGptAnswer, {"conversations": [HUMAN, {"from": "function_call", "value": "[]"}]}, "conversations[1] is a call of a tool"),
    (ShareGptLabel, {"conversations": [HUMAN], "label": True}, "must be the assistant's, got role 'user'"),
    (SwiftPair, {"messages": [USER, GOOD]}, "the row has neither 'rejected_response' nor 'rejected_messages'; it needs one"),
    (
        SwiftPair,
        {**SWIFT, "rejected_messages": [USER, BAD]},
        "the row has 'rejected_response' and 'rejected_messages'; it needs one",
    ),
    (SwiftPair, {**SWIFT, "messages": [USER]}, "the last message of column 'messages' must be the assistant's, got role 'user'"),
    (SwiftPair, {**SWIFT, "rejected_response": "a"}, "messages equals rejected_response"),
    (SwiftPair, {**SWIFT, "rejected_response": " "}, "column 'rejected_response' is empty"),
    (SwiftPair, {**SWIFT, "rejected_response": 3}, "column 'rejected_response' must be a list of messages, got int 3"),
    (
        SwiftPair,
        {"messages": [USER, GOOD], "rejected_messages": [{**USER, "content": "r"}, BAD]},
        "messages and rejected_messages must be the same messages up to the last one",
    ),
]


@pytest.mark.parametrize(("strategy", "row", "message"), REFUSED)
def test_a_bad_row_is_refused_with_column_value_and_remedy(strategy, row, message):
    with pytest.raises(RowError) as failure:
        strategy().parse(row)
    assert message in str(failure.value)


ROWS = {
    ShareGptPair: SHAREGPT,
    ShareGptAnswer: {"conversations": [HUMAN, GPT]},
    ShareGptLabel: {"conversations": [HUMAN, GPT], "label": True},
    ShareGptPrompt: SHAREGPT,
    SwiftPair: SWIFT,
    SwiftAnswer: {"messages": [USER, GOOD]},
    SwiftLabel: {"messages": [USER, GOOD], "label": True},
    SwiftPrompt: SWIFT,
}


@pytest.mark.parametrize("cls", ROWS)
def test_the_formats_keep_their_promises(cls):
    check_dataset_strategy(cls, [ROWS[cls]], [{}, {"messages": 1, "conversations": 1}])


def test_only_rows_that_could_be_no_others_are_recognised():
    assert ShareGptPair.recognises(SHAREGPT) and ShareGptPrompt.recognises(SHAREGPT)
    assert not ShareGptAnswer.recognises(SHAREGPT) and not ShareGptLabel.recognises(SHAREGPT)
    assert ShareGptAnswer.recognises(ROWS[ShareGptAnswer])
    assert ShareGptLabel.recognises(ROWS[ShareGptLabel]) and not ShareGptAnswer.recognises(ROWS[ShareGptLabel])
    assert not ShareGptPair.recognises({**SHAREGPT, "conversations": [USER]})
    assert SwiftPair.recognises(SWIFT) and SwiftPrompt.recognises(SWIFT)
    assert not SwiftPair.recognises({"messages": [USER, GOOD]}) and not SwiftPrompt.recognises({"messages": [USER]})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("a {\u00e9:\nHuman", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner),
    max_leaves=6,
)
ROLES = st.sampled_from(["human", "gpt", "system", "user", "assistant", "function_call", "observation", "x"])
TURNS = st.lists(
    st.builds(
        lambda who, what, ours: {"role": who, "content": what} if ours else {"from": who, "value": what},
        ROLES,
        VALUES,
        st.booleans(),
    ),
    max_size=4,
)
COLUMNS = [
    "conversations",
    "messages",
    "system",
    "chosen",
    "rejected",
    "rejected_response",
    "rejected_messages",
    "label",
    "margin",
    "tools",
]


@settings(deadline=None)
@given(st.sampled_from(FORMATS), st.dictionaries(st.sampled_from(COLUMNS), VALUES | TURNS))
def test_any_row_is_read_or_refused_and_never_changed(cls: Any, row: dict[str, Any]):
    before = copy.deepcopy(row)
    recognises = getattr(cls, "recognises", None)
    if recognises is not None:
        recognises(row)
    try:
        cls().parse(row)
    except RowError as error:
        assert str(error)
    assert row == before
