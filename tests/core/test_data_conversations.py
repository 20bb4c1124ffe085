"""Conversations under the data's own names, tools as text, and what core's own formats read besides prompt and sides."""

from __future__ import annotations

from typing import Any

import pytest

from truing.data.spelling import Spelling
from truing.data.strategies import Preference, PromptText, Unpaired
from truing.errors import RowError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("keys", "message", "expected"),
    [
        ({}, {"role": "human", "content": "q", "name": None}, USER),
        ({"role": "from", "content": "value"}, {"from": "user", "value": "q", "weight": 1}, {**USER, "weight": 1}),
        ({"role": "who"}, {"who": "user", "content": "q", "role": "lead"}, USER),
        ({"content": "name"}, {"role": "user", "name": "q"}, USER),
        ({"role": "content", "content": "role"}, {"content": "user", "role": "q"}, USER),
    ],
)
def test_a_message_gets_our_keys(keys: dict[str, str], message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert Spelling(keys, {}).read([message], "messages") == (expected,)


def test_roles_of_the_data_are_told_beside_those_that_are_known() -> None:
    spelling = Spelling({}, {"assistant": ["bot", "human"]})
    turns = [{"role": role, "content": "x"} for role in ("bot", "human", "gpt", "user", "tool_response")]
    assert [message["role"] for message in spelling.read(turns, "m")] == ["assistant", "assistant", "assistant", "user", "tool"]


def test_a_role_that_is_told_is_no_call_of_a_tool() -> None:
    spelling = Spelling({}, {"assistant": ["tool_call"]})
    assert spelling.read([{"role": "tool_call", "content": "text"}], "m") == ({"role": "assistant", "content": "text"},)


@pytest.mark.parametrize("keys", [{"role": "x", "content": "x"}, {"content": "role"}])
def test_one_key_of_the_data_has_one_meaning(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="message_property_mappings gives one key of the data two meanings"):
        Spelling(keys, {})


@pytest.mark.parametrize(
    ("tools", "read"),
    [
        ('[{"name": "f", "default": null}]', [{"name": "f"}]),
        ([{"name": "f", "properties": [{"a": None, "b": {"c": None}}]}], [{"name": "f", "properties": [{"b": {}}]}]),
        ("", None),
        ("[]", None),
        (None, None),
    ],
)
def test_tools_may_be_json_and_lose_their_null_keys(tools: Any, read: Any) -> None:
    row = {**PAIR, "tools": tools}
    assert Preference().parse(row).tools == read
    assert row["tools"] == tools


@pytest.mark.parametrize("tools", ["search", '{"name": "f"}', 3])
def test_tools_that_are_no_list_are_refused(tools: Any) -> None:
    with pytest.raises(RowError, match="column 'tools' must be a list of tool descriptions"):
        Preference().parse({**PAIR, "tools": tools})


def test_null_keys_of_calls_vanish_at_any_depth() -> None:
    """Columnar files give each call the arguments of all others."""
    call = {"function": {"name": "f", "arguments": {"a": 1, "b": None}}, "id": None}
    chosen = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    example = Preference().parse({"prompt": [USER], "chosen": chosen, "rejected": [ANSWER]})
    (message,) = example.responses[0]
    assert message == {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}


def test_unpaired_reads_messages_of_which_the_last_is_labelled() -> None:
    example = Unpaired().parse({"messages": [USER, ANSWER], "label": False, "id": 7, "completion": None})
    assert (example.prompt, example.responses, example.label) == ((USER,), ((ANSWER,),), False)
    assert example.columns == {"id": 7, "completion": None}
    for messages, message in (
        ([USER], "must be the assistant's"),
        ([ANSWER], "there is nothing to answer"),
        ("q", "a list of messages"),
    ):
        with pytest.raises(RowError, match=f"column 'messages' .*{message}|the last message of column 'messages' {message}"):
            Unpaired().parse({"messages": messages, "label": True})


def test_a_query_is_the_users_turn_after_a_system_turn() -> None:
    system = {"role": "system", "content": "s"}
    example = PromptText().parse({"query": "q", "system": "s", "solution": "4"})
    assert (example.prompt, example.columns) == ((system, USER), {"solution": "4"})
    for nothing in ({}, {"system": None}, {"system": ""}):
        assert PromptText().parse({"query": "q", **nothing}).prompt == (USER,)
    assert PromptText().parse({"prompt": "p", "query": "q"}).prompt == "p"
    with pytest.raises(RowError, match="column 'query' is empty"):
        PromptText().parse({"query": " "})
    with pytest.raises(RowError, match="column 'system' must be text, got int 3"):
        PromptText().parse({"query": "q", "system": 3})
