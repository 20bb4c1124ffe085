"""Tools: how they are described, how calls are read, and what they are answered."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.core.conversations import TOOLS_TEMPLATE, ask, opened, user
from truing.errors import ConfigError
from truing.rollout import Observation
from truing.rollout.conversation.tools import Call, TurnReader, open_tools
from truing.testing import tiny_tokenizer

TOOLS = '''
import asyncio, time

def add(a: int, b: int = 1):
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b

async def later(word: str) -> str:
    """Says a word later.

    Args:
        word: What is said.
    """
    await asyncio.sleep(0)
    return word + "!"

def sleep(seconds: float):
    """Sleeps.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)

def leave():
    """Ends the interpreter."""
    raise SystemExit(3)

def undescribed(a: int):
    """Says nothing of its argument."""

def untyped(a):
    """Has no type.

    Args:
        a: Something.
    """
'''
TOKENIZER = tiny_tokenizer()
SCHEMAS = ({"type": "function", "function": {"name": "add"}},)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(TOOLS)
    return tmp_path


@pytest.fixture
def toolbox(folder):
    made = open_tools([f"mine.{name}" for name in ("add", "later", "sleep", "leave")], folder, 0.5)
    yield made
    made.close()


def call(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments})


def written(*calls):
    return "".join(f"<tool_call>{one}</tool_call>" for one in calls)


def read(text, tokenizer=TOKENIZER, tools=SCHEMAS):
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    before = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    return TurnReader(tokenizer, tools).read(ids, before, 3)


def test_functions_are_described_by_their_docstrings(toolbox):
    schema = toolbox.schemas[0]["function"]
    assert (schema["name"], schema["description"], schema["parameters"]["required"]) == ("add", "Adds two numbers.", ["a"])
    assert schema["parameters"]["properties"]["a"] == {"type": "integer", "description": "The first."}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["mine.undescribed"],
            "mine.undescribed cannot be described to the policy: .*no description for the argument 'a'; give every",
        ),
        (["mine.untyped"], "mine.untyped cannot be described to the policy: .*missing a type hint"),
        (["mine.add", "mine.add"], "two functions are called 'add'; give mine.add another name"),
        (["mine.nothing"], "defines no function 'nothing'"),
    ],
)
def test_functions_that_cannot_be_tools_are_refused(folder, names, message):
    with pytest.raises(ConfigError, match=message):
        open_tools(names, folder, 1.0)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (Call("1", "add", {"a": 2, "b": 3}), "5"),
        (Call("1", "add", {"a": 2}), "3"),
        (Call("1", "later", {"word": "été"}), "été!"),
        (Call("1", "add", {}), "error: add: missing a required argument: 'a'"),
        (Call("1", "add", {"a": 1, "c": 2}), "error: add: got an unexpected keyword argument 'c'"),
        (Call("1", "add", {"a": "x", "b": 2}), "error: TypeError: can only concatenate str"),
        (Call("1", "ad", {}), "error: there is no tool 'ad'; did you mean 'add'?"),
        (Call("1", fault="a call is not closed"), "error: a call is not closed"),
        (Call("1", "leave", {}), "error: LeftError: SystemExit: 3"),
        (Call("1", "sleep", {"seconds": 30}), "error: DeadlineError: no answer within 0.5 s"),
    ],
)
def test_calls_are_answered_whatever_happens(toolbox, asked, answer):
    started = time.monotonic()
    message = asyncio.run(toolbox.answer(asked))
    assert message["role"] == "tool" and message["tool_call_id"] == "1"
    assert message["content"].startswith(answer)
    assert time.monotonic() - started < 5


def test_calls_in_the_form_of_hermes_are_found():
    message, calls = read("I add. " + written(call("add", a=1, b=2), call("later", word="x")))
    assert [(one.id, one.name, one.arguments, one.fault) for one in calls] == [
        ("000300000", "add", {"a": 1, "b": 2}, ""),
        ("000300001", "later", {"word": "x"}, ""),
    ]
    assert message["content"] == "I add." and [one["function"]["name"] for one in message["tool_calls"]] == ["add", "later"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (written("{"), "a call is not JSON: JSONDecodeError"),
        (written("[" * 100_000), "a call is not JSON: RecursionError"),
        (written("3"), 'a call is not of the form {"name"'),
        (written('{"name": 3, "arguments": {}}'), "a call is not of the form"),
        (written('{"name": "add", "arguments": "a"}'), "a call is not of the form"),
        ('<tool_call>{"name": "add"}', "a call is not closed"),
    ],
)
def test_calls_that_cannot_be_read_say_why(text, fault):
    message, [bad] = read(text)
    assert bad.fault.startswith(fault)
    assert message == {"role": "assistant", "content": text}  # as it was written


@pytest.mark.parametrize("bad", ["<tool_call>{</tool_call>", "<tool_call>3</tool_call>"])
def test_calls_that_can_be_read_are_there_beside_those_that_cannot(bad):
    message, calls = read(f"So. {bad}{written(call('add', a=1))}")
    assert [(one.name, bool(one.fault)) for one in calls] == [("", True), ("add", False)]
    assert message["content"] == f"So. {bad}" and [one["id"] for one in message["tool_calls"]] == [calls[1].id]


def test_a_turn_without_calls_and_without_tools_is_text():
    assert read("Just so.") == ({"role": "assistant", "content": "Just so."}, ())
    assert read(written(call("add", a=1)), tools=())[1] == ()


TEMPLATE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"close_pattern": r"<call>|<\|im_end\|>|\Z"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}


def test_a_tokenizer_that_knows_how_its_model_calls_is_asked():
    tokenizer = tiny_tokenizer()
    tokenizer.response_template = TEMPLATE
    message, [made] = read(f"So: <call>{call('add', a=1)}</call>", tokenizer)
    assert (made.name, made.arguments, made.fault) == ("add", {"a": 1}, "")
    assert message["content"].strip() == "So:" and message["tool_calls"][0]["id"] == made.id


def test_what_such_a_tokenizer_cannot_read_is_told():
    class Fails:
        response_schema = "{}"
        all_special_ids = ()
        eos_token_id = 0
        encode = staticmethod(lambda text, add_special_tokens: [1])
        decode = staticmethod(lambda ids, skip_special_tokens: "x")

        def parse_response(self, ids):
            raise KeyError("role")

    message, [bad] = read("x", Fails())
    assert bad.fault == "the calls cannot be read: KeyError: 'role'" and message["content"] == "x"


def conversation(folder, turns, **options):
    """Open conversations whose policy writes these turns, one after the other."""

    def say(request):
        return turns[TOKENIZER.decode(list(request.prompt_ids)).count("<|im_start|>tool\n")]

    return opened(folder, say, template=TOOLS_TEMPLATE, **options)


@pytest.mark.parametrize("server", [False, True])
def test_an_episode_with_tools_ends_at_a_turn_without_calls(folder, server):
    live = conversation(folder, [written(call("add", a=20, b=22)), "It is 42."], tools=("mine.add",), server=server)
    assert "with the tools add" in live.about and "otherwise" not in live.about
    [one] = live.generate([ask(live, [user("Add.")])])
    text = TOKENIZER.decode(list(one.token_ids))
    asked = f"{written(call('add', a=20, b=22))}<|im_end|>\n"
    assert text == f"{asked}<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\nIt is 42.<|im_end|>"
    assert '"name": "add"' in TOKENIZER.decode(list(one.prompt_ids)).partition("Add.")[0]
    assert (one.finish_reason, one.rewards, one.episode.turns) == ("stop", {}, 2)
    assert one.text == written(call("add", a=20, b=22)) + "\nIt is 42."
    live.close()


def test_an_answer_that_is_cut_was_not_ended_by_the_policy(folder):
    live = conversation(folder, ["It is 42."], tools=("mine.add",), max_turn_length=4)
    [one] = live.generate([ask(live, [user("Add.")])])
    live.close()
    assert (one.finish_reason, one.text, one.episode.turns) == ("length", "It i", 1)


def test_the_environment_carries_out_what_can_be_read(folder):
    """Two messages of tools after the first turn, so that the third text is the second turn's."""
    desk = Desk()
    live = conversation(folder, [written("{", call("ring")), "", "Done."], environments=desk)
    [one] = live.generate([ask(live, [user("Ring.")], length=1000)])
    live.close()
    told, rang = [message["content"] for message in one.episode.messages if message["role"] == "tool"][:2]
    assert told.startswith("error: a call is not JSON") and rang == "rang ['ring']"
    assert [made["function"]["name"] for made in desk.got[0]["tool_calls"]] == ["ring"]


@pytest.mark.parametrize("word", ["\ud83d", 10**22, {"a": ["\ude00"]}])
def test_what_the_policy_writes_ends_no_run(folder, word):
    (folder / "echo.py").write_text(
        'def echo(word: str):\n    """Says it.\n\n    Args:\n        word: What.\n    """\n    return word\n'
    )
    live = conversation(folder, [written(call("echo", word=word)), "Done."], tools=("echo.echo",))
    [one] = live.generate([ask(live, [user("Say.")], length=1000)])
    live.close()
    assert (one.finish_reason, one.episode.turns) == ("stop", 2)


def test_calls_of_the_last_turn_are_not_made(folder):
    (folder / "noted.py").write_text(
        'CALLS = []\n\ndef note():\n    """Notes."""\n    CALLS.append(1)\n    return str(len(CALLS))\n'
    )
    live = conversation(folder, [written(call("note"))] * 3, tools=("noted.note",), max_turns=2)
    [one] = live.generate([ask(live, [user("Note.")], length=1000)])
    live.close()
    assert (one.finish_reason, one.episode.turns) == ("length", 2)
    assert [message["content"] for message in one.episode.messages if message["role"] == "tool"] == ["1"]


class Desk:
    """An environment with a tool of its own, which answers what it gets."""

    name, capacity = "desk", None
    tools = ({"type": "function", "function": {"name": "ring", "description": "Rings.", "parameters": {"type": "object"}}},)

    def __init__(self):
        self.got, self.closed = [], 0

    def new(self):
        return Sitting(self)

    def close(self):
        self.closed += 1


class Sitting:
    def __init__(self, desk):
        self.desk = desk

    async def reset(self, columns, seed):
        return Observation(messages=(user("Go on."),))

    async def step(self, message):
        self.desk.got.append(message)
        names = [one["function"]["name"] for one in message.get("tool_calls", ())]
        return Observation(messages=({"role": "tool", "name": "ring", "content": f"rang {names}"},), done=not names)

    async def close(self):
        pass


def test_tools_of_functions_and_of_the_environment_are_answered_by_whom_they_belong_to(folder):
    """Three messages of tools after the second turn, so that the fourth text is the third turn's."""
    turns = [written(call("add", a=1)), written(call("ring"), call("add", a=2)), "", "Done."]
    desk = Desk()
    live = conversation(folder, turns, tools=("mine.add",), environments=desk)
    assert "in desk with the tools add, ring" in live.about
    [one] = live.generate([ask(live, [user("Add.")], length=1000)])
    live.close()
    assert [message["content"] for message in one.episode.messages if message["role"] == "tool"] == [
        "2",
        "3",
        "rang ['ring']",
        "rang []",
    ]
    assert [[made["function"]["name"] for made in message.get("tool_calls", ())] for message in desk.got] == [["ring"], []]
    assert (one.finish_reason, one.episode.turns, desk.closed) == ("stop", 3, 1)


def test_a_function_with_the_name_of_a_tool_of_the_environment_is_refused(folder):
    (folder / "bell.py").write_text('def ring():\n    """Rings."""\n')
    desk = Desk()
    with pytest.raises(ConfigError, match=r"rollout.tools has 'ring', and so has the environment, .* rename the function"):
        conversation(folder, [], tools=("bell.ring",), environments=desk)
    assert desk.closed == 1
