"""`chat_template.argilla_chat` and `chat_template.argilla`: two conversations that differ in their last message."""

from __future__ import annotations

from typing import Any

import pytest

from truing import RowError
from truing_chat_template.argilla import ArgillaChatPair, ArgillaChatPrompt, ArgillaPair, ArgillaPrompt


def user(content: Any = "q") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "a") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "s"}
LONG = [SYSTEM, user("first"), assistant("one"), user()]


def pair(before: list[Any], **more: Any) -> dict[str, Any]:
    return {"chosen": [*before, assistant()], "rejected": [*before, assistant("b")], **more}


@pytest.mark.parametrize("cls", [ArgillaChatPair, ArgillaPair])
def test_the_prompt_is_what_both_begin_with(cls):
    example = cls().parse(pair(LONG, margin=1, id=7))
    assert example.prompt == tuple(LONG)
    assert example.responses == ((assistant(),), (assistant("b"),))
    assert (example.margin, example.columns) == (1.0, {"id": 7})
    assert cls().parse(pair([user()], system="s")).prompt == (SYSTEM, user())


@pytest.mark.parametrize("cls", [ArgillaChatPrompt, ArgillaPrompt])
def test_a_prompt_needs_the_better_conversation_only(cls):
    assert cls().parse({"chosen": [*LONG, assistant()], "answer": "4"}).prompt == tuple(LONG)
    assert cls().parse({"chosen": LONG}).prompt == tuple(LONG)
    assert cls().parse(pair(LONG, answer="4")).columns == {"answer": "4"}


@pytest.mark.parametrize("cls", [ArgillaPair, ArgillaPrompt])
def test_a_column_prompt_takes_the_place_of_the_one_user_turn(cls):
    assert cls().parse(pair([user("short")], prompt="in full")).prompt == (user("in full"),)
    assert cls().parse(pair([SYSTEM, user("short")], prompt="in full")).prompt == (SYSTEM, user("in full"))
    assert cls().parse(pair([user()], prompt=None)).prompt == (user(),)
    assert cls(field_prompt="query").parse(pair([user()], query="r", prompt="x")).columns == {"prompt": "x"}


def test_argilla_chat_hands_a_column_prompt_on():
    example = ArgillaChatPair().parse(pair([user()], prompt="q"))
    assert (example.prompt, example.columns) == ((user(),), {"prompt": "q"})


REFUSED = [
    (ArgillaChatPair, {**pair([user()]), "rejected": [user("r"), assistant()]}, "must be the same messages up to the last one"),
    (ArgillaChatPair, {**pair([user()]), "rejected": [user()]}, "the last message of column 'rejected' must be the assistant's"),
    (ArgillaChatPair, {**pair([user()]), "rejected": [user(), assistant()]}, "chosen equals rejected"),
    (ArgillaChatPair, pair([]), "chosen and rejected are one message each: there is nothing to answer"),
    (ArgillaChatPair, {"chosen": "a", "rejected": "b"}, "column 'chosen' must be a list of messages, got str 'a'"),
    (ArgillaChatPair, pair([SYSTEM, user()], system="t"), "columns 'system' and 'chosen' have different system turns"),
    (ArgillaChatPrompt, {"chosen": [assistant()]}, "column 'chosen' must have a message of another role"),
    (ArgillaPair, pair([user(), user()]), "chosen[1] has the role 'user' where 'assistant' is due"),
    (ArgillaPair, pair([SYSTEM, assistant(), user()]), "chosen[1] has the role 'assistant' where 'user' is due"),
    (
        ArgillaPair,
        pair(LONG, prompt="p"),
        "column 'prompt' takes the place of one user turn, and column 'chosen' has 3 messages before the answer",
    ),
    (ArgillaPair, pair([user()], prompt=" "), "column 'prompt' is empty"),
    (ArgillaPrompt, {"chosen": [user(), user()]}, "use chat_template.argilla_chat"),
]


@pytest.mark.parametrize(("strategy", "row", "message"), REFUSED)
def test_a_bad_row_is_refused_with_column_value_and_remedy(strategy, row, message):
    with pytest.raises(RowError) as failure:
        strategy().parse(row)
    assert message in str(failure.value)
