"""Classes of the user's as environments: what they are given, and what they may return."""

from __future__ import annotations

import ast
import asyncio

import numpy as np
import pytest

from tests.core.conversations import user
from truing.errors import ConfigError
from truing.rollout import Observation
from truing.rollout.conversation.python_environments import ALLOWED, load_environments, read_observation


def environments(folder, body, name="Env"):
    (folder / "mine.py").write_text(body)
    return load_environments(f"mine.{name}", folder, 5.0)


def reset(made, columns, seed=7):
    async def begin():
        one = made.new()
        try:
            return await one.reset(columns, seed)
        finally:
            await one.close()

    return asyncio.run(begin())


@pytest.mark.parametrize(
    ("signature", "given"),
    [
        ("self", {}),
        ("self, seed=None", {"seed": 7}),
        ("self, seed, level", {"seed": 7, "level": 3}),
        ("self, level, other=5", {"level": 3, "other": 5}),
        ("self, seed=None, **columns", {"seed": 7, "columns": {"level": 3, "task": "t"}}),
    ],
)
def test_reset_gets_the_seed_and_the_columns_that_it_takes(tmp_path, signature, given):
    body = f"class Env:\n    def reset({signature}):\n        return str({{k: v for k, v in locals().items() if k != 'self'}})\n"
    made = environments(tmp_path, body + "    def step(self, text):\n        return text\n")
    [message] = reset(made, {"level": 3, "task": "t"}).messages
    assert ast.literal_eval(message["content"]) == given
    made.close()


def test_a_column_that_rows_lack_is_an_error_of_the_configuration(tmp_path):
    body = "class Env:\n    def reset(self, levels):\n        pass\n    def step(self, text):\n        pass\n"
    made = environments(tmp_path, body)
    message = r"mine.Env.reset asks for column 'levels', which rows lack \(columns: level\); did you mean 'level'"
    with pytest.raises(ConfigError, match=message):
        reset(made, {"level": 3})
    made.close()


def test_reset_may_say_nothing_and_step_must_say_something(tmp_path):
    body = "class Env:\n    def reset(self):\n        pass\n    def step(self, text):\n        pass\n"
    made = environments(tmp_path, body)
    assert reset(made, {}) == Observation()

    async def play():
        one = made.new()
        await one.reset({}, 1)
        await one.step(user("x"))

    with pytest.raises(ValueError, match="returned NoneType None") as error:
        asyncio.run(play())
    assert str(error.value) == f"mine.Env.step returned NoneType None; it must return {ALLOWED}"
    made.close()


def test_name_and_capacity_are_attributes_of_the_class(tmp_path):
    body = "    def reset(self):\n        pass\n    def step(self, text):\n        pass\n"
    made = environments(tmp_path, "class Env:\n    name, capacity = 'game', 3\n" + body)
    assert (made.name, made.capacity) == ("game", 3)
    made.close()
    plain = environments(tmp_path, "class Env:\n" + body)
    assert (plain.name, plain.capacity) == ("Env", None)
    plain.close()


@pytest.mark.parametrize(("method", "shown"), [("reset", "reset(seed=None, **columns)"), ("step", "step(text)")])
def test_a_class_without_its_methods_is_refused(tmp_path, method, shown):
    other = "step" if method == "reset" else "reset"
    with pytest.raises(ConfigError) as error:
        environments(tmp_path, f"class Env:\n    def {other}(self):\n        pass\n")
    assert str(error.value) == f"rollout.environment: mine.Env has no method {method!r}; write a class with {shown}"


TOOL = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hi", Observation(messages=(user("hi"),))),
        (TOOL, Observation(messages=(TOOL,))),
        ([user("a"), TOOL], Observation(messages=(user("a"), TOOL))),
        (("hi", 1, False), Observation(messages=(user("hi"),), reward=1.0)),
        ((None, np.float32(0.5), np.bool_(True)), Observation(reward=0.5, done=True)),
        (("", None, True), Observation(done=True)),
        (Observation(reward=2.0), Observation(reward=2.0)),
    ],
)
def test_what_may_be_returned(value, expected):
    assert read_observation(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "NoneType None"),
        (3, "int 3"),
        ({"role": "user"}, "dict {'role': 'user'}"),
        (["hi"], "list \\['hi'\\]"),
        (("hi", 1.0), "a tuple of 2"),
        (("hi", "much", True), "the reward 'much', which is no finite number"),
        (("hi", float("nan"), True), "the reward nan, which is no finite number"),
        (("hi", 1.0, "yes"), "'yes' where `done` belongs, which is neither true nor false"),
    ],
)
def test_what_may_not_be_returned(value, message):
    with pytest.raises(ValueError, match=message):
        read_observation(value)
