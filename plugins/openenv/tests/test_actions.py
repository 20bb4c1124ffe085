"""What is read of a text, for every kind of action."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.errors import ConfigError
from truing_openenv.actions import ActionReader
from truing_openenv.protocol import InvalidActionError
from truing_openenv.schema import Schema

METADATA = {"metadata": {"type": "object"}}


def reader(field=None, required=(), defs=None, **properties):
    return ActionReader.of(
        Schema({"properties": {**METADATA, **properties}, "required": list(required), "$defs": defs or {}}), field
    )


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "first 3, then I say 42.", 42),
        ({"type": "integer"}, "7 or -12", -12),
        ({"type": "integer"}, "between 5-3", 3),
        ({"type": "integer"}, "the 2.5", 2.5),  # which the server's own validation answers
        ({"type": "number"}, "x=-0.25!", -0.25),
        ({"type": "number"}, "4", 4),
        ({"type": "string"}, " look around\n", "look around"),
        ({}, "anything", "anything"),
        ({"type": "boolean"}, "Yes? No.", False),
        ({"type": "boolean"}, "truely it is True", True),
        ({"enum": ["left", "right", "up"]}, "not right but LEFT, upwards", "left"),
        ({"enum": [1, 2, 12]}, "between 2 and 12", 12),
        ({"type": "array"}, "[1] and [2, [3]] so", [2, [3]]),
        ({"type": "object"}, '{"a": 1} {"b": {"c": 2}}', {"b": {"c": 2}}),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "8", 8),
        ({"$ref": "#/$defs/Move"}, "go north", "north"),
    ],
)
def test_one_field_gets_the_last_value_of_its_type(schema, text, value):
    found = reader(move=schema, defs={"Move": {"enum": ["north", "south"]}})(text)
    assert found == {"move": value} and type(found["move"]) is type(value)


@pytest.mark.parametrize(
    ("schema", "text", "what"),
    [
        ({"type": "integer"}, "none", "number"),
        ({"type": "string"}, " \n", "text"),
        ({"type": "boolean"}, "maybe", "word of true, false"),
        ({"enum": ["left", "right"]}, "leftover", "word of left, right"),
        ({"type": "object"}, '{"a": NaN} {"a": 1', "JSON object"),
        ({"type": "array"}, "[1, 1e999", "JSON list"),
        ({"type": "array"}, "[" * 100_000, "JSON list"),
    ],
)
def test_a_text_without_one_is_an_invalid_action(schema, text, what):
    with pytest.raises(InvalidActionError) as raised:
        reader(move=schema)(text)
    assert str(raised.value) == f"there is no {what} in it"


def test_several_fields_are_the_last_json_object():
    act = reader(x={"type": "integer"}, y={"type": "integer"})
    assert act('try {"x": 0, "y": 0} no: {"x": 1, "y": 2} {"x": ') == {"x": 1, "y": 2}
    with pytest.raises(InvalidActionError, match="there is no JSON object with x, y in it"):
        act("x=1 y=2")


def test_a_field_can_be_chosen():
    act = reader("text", text={"type": "string"}, loud={"type": "boolean"}, required=("text",))
    assert act("hey") == {"text": "hey"}
    assert act.about == "`text`: the text"
    with pytest.raises(ConfigError, match="action_field is 'word'; the fields of an action here are text, loud"):
        reader("word", text={"type": "string"}, loud={"type": "boolean"})
    with pytest.raises(ConfigError, match="action_field is 'loud', and an action needs text too; leave action_field out"):
        reader("loud", text={"type": "string"}, loud={"type": "boolean"}, required=("text",))


def test_a_field_with_one_value_only_is_no_field():
    assert reader(kind={"const": "move"}, x={"type": "integer"})("4") == {"x": 4}


def test_what_is_read_is_said():
    assert reader(x={"type": "integer"}).about == "`x`: the last number of the text"
    assert reader(x={"type": "integer"}, y={}).about == "the last JSON object with x, y of the text"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()), st.text(alphabet="ab \n.,:"))
def test_a_json_object_is_found_whatever_stands_before_it(before, value, after):
    before = before.replace("{", "(")
    assert reader(x={}, y={})(f"{before}{json.dumps(value)}{after}") == value


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.sampled_from(["integer", "number", "string", "boolean", "object", "array", None]))
def test_any_text_gives_json_or_an_invalid_action(text, type_):
    with contextlib.suppress(InvalidActionError):
        json.dumps(reader(x={"type": type_})(text), allow_nan=False)


def test_a_schema_that_refers_to_itself_ends():
    assert Schema({"properties": {"a": {"$ref": "#/properties/a"}, "b": {"$ref": "#/nowhere"}, "c": 3}}).fields == {
        "a": {},
        "b": {},
        "c": {},
    }
