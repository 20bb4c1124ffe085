"""`truing env-check`, and the random actions that it plays."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from click.testing import CliRunner
from tests.rollouts.fake_openenv import Calculator, FakeServer, failure

from truing.cli import main
from truing_openenv.random_actions import MOST_LETTERS, random_action
from truing_openenv.report import kind_of, shown
from truing_openenv.schema import Schema

QUICK = ["--seconds", "0.2", "--timeout", "2"]


def check(*arguments):
    return CliRunner().invoke(main, ["env-check", *arguments, *QUICK])


def test_an_environment_is_shown_played_and_measured(fake):
    result = check(fake.url, "--seed", "1", "--sessions", "3")
    assert result.exit_code == 0, result.output
    assert re.search(r"Action\n  guess  a whole number from 0 to 40  required", result.output)
    assert re.search(r"Observation\n  hint  text  required", result.output)
    assert "a turn gives `guess`: the last number" in result.output and "64 sessions at once" in " ".join(result.output.split())
    assert re.search(r'seed 1\nreset +Guess 0 to 40\. *\n(\{"guess": \d+\} +(lower|higher) +reward 0 *\n)+', result.output)
    assert re.search(r"\d steps, reward [0-9.]+ in all; the environment ended it", result.output)
    assert re.search(r"  1 session +[\d,]+\n +3 sessions +[\d,]+\n", result.output)
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert check(fake.url, "--seed", "1").output.split("Round")[0] == result.output.split("Round")[0]
    assert not fake.active


def test_tools_are_shown_and_called():
    with FakeServer(Calculator) as server:
        result = check(server.url, "--turns", "3")
    assert result.exit_code == 0, result.output
    assert re.search(r"Tool add\nAdd two numbers\.\n  a  a whole number  required", result.output)
    assert "a turn calls tools (add, fail)" in result.output
    assert "3 steps, reward 0 in all; it would go on" in result.output


def test_a_wrong_address_and_a_server_that_is_not_there():
    wrong = check("nonsense")
    assert wrong.exit_code == 2 and "url is 'nonsense', which is no address of a server" in wrong.output
    gone = check("http://127.0.0.1:9")
    assert gone.exit_code == 3 and "cannot reach the OpenEnv server http://127.0.0.1:9" in gone.output


def test_a_server_that_fails_in_the_episode(fake):
    async def fail(connection, message):
        if message["type"] == "step":
            await connection.send(json.dumps(failure("EXECUTION_ERROR", "boom")))
        return message["type"] == "step"

    fake.fault = fail
    result = check(fake.url)
    assert result.exit_code == 3
    assert re.search(r"the episode ended with an error: http://127.0.0.1:\d+ answered with EXECUTION_ERROR: boom", result.output)


def test_a_terminal_obeys_no_server(fake):
    fake.environment = type("\x1b[2JGuess", (fake.environment,), {"__doc__": "\x1b]0;title\x07 [bold]x[/bold] :smile:"})
    result = check(fake.url)
    assert "\x1b" not in result.output and "\x07" not in result.output
    assert "\\x1b[2JGuess at" in result.output and "[bold]x[/bold] :smile:" in result.output
    assert shown("a\nb\x00") == "a\nb\\x00" and len(shown("x" * 1000)) < 500


FIELDS = [
    {"type": "integer"},
    {"type": "integer", "minimum": 3, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "maximum": -20},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": 100},
    {"type": "boolean"},
    {"type": "string", "minLength": 10, "maxLength": 12},
    {"type": "string", "maxLength": 1},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    {"type": "array", "items": {"$ref": "#/$defs/Point"}},
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    {"$ref": "#/$defs/Point"},
    {"anyOf": [{"type": "null"}, {"enum": ["a", "b"]}]},
    {"enum": [1, "x", None]},
    {},
]
POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "number"}}, "required": ["x", "y"]}


@pytest.mark.parametrize("field", FIELDS, ids=json.dumps)
def test_random_actions_are_of_the_schema(field):
    schema = {"type": "object", "properties": {"f": field}, "required": ["f"], "$defs": {"Point": POINT}}
    validator = jsonschema.Draft202012Validator(schema)
    actions = [random_action(Schema(schema), random.Random(seed)) for seed in range(20)]
    for action in actions:
        validator.validate(action)
    assert actions == [random_action(Schema(schema), random.Random(seed)) for seed in range(20)]


def test_a_schema_cannot_ask_for_too_much():
    within = {"type": "object", "properties": {"again": {"$ref": "#/$defs/Within"}}}
    fields = {"text": {"type": "string", "minLength": 10**9}, "list": {"type": "array", "minItems": 10**9}, "deep": within}
    action = random_action(Schema({"properties": fields, "$defs": {"Within": within}}), random.Random(0))
    assert len(action["text"]) == MOST_LETTERS and len(action["list"]) == 100 and len(json.dumps(action["deep"])) < 100


def test_kinds_in_words():
    assert kind_of({"type": "number", "exclusiveMinimum": 0, "maximum": 1}) == "a number above 0 to 1"
    assert kind_of({"enum": ["a", 1]}) == "one of a, 1"
    assert kind_of({"type": "string", "maxLength": 5}) == "text of at most 5"
    assert kind_of({}) == "anything"
