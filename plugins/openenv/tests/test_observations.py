"""What a policy reads of an observation, and of a tool's answer."""

from __future__ import annotations

import pytest

from truing.errors import ConfigError
from truing_openenv.observations import ObservationReader, tool_answer
from truing_openenv.protocol import BASE_FIELDS, Turn
from truing_openenv.schema import Schema

SCHEMA = Schema({"properties": {"done": {}, "reward": {}, "metadata": {}, "board": {}, "hint": {}}}, BASE_FIELDS)


@pytest.mark.parametrize(
    ("observation", "field", "text"),
    [
        ({"hint": "a\nb"}, None, "a\nb"),
        ({"hint": "ä", "board": [1], "metadata": {"secret": 1}, "reward": 1.0, "done": True}, None, '{"hint": "ä", "board": [1]}'),
        ({"hint": {"x": 1}, "metadata": {}}, None, '{"x": 1}'),
        ({"hint": None}, None, ""),
        ({"metadata": {"status": "ready"}}, None, ""),
        ({"hint": "a", "board": "b"}, "board", "b"),
        ({"hint": "a", "board": [[0, 1]]}, "board", "[[0, 1]]"),
        ({"hint": "a"}, "board", ""),
    ],
)
def test_an_observation_is_text(observation, field, text):
    assert ObservationReader.of([SCHEMA], field)(Turn(observation)) == text


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="observation_field is 'text'; the fields of an observation here are board, hint"):
        ObservationReader.of([SCHEMA], "text")


@pytest.mark.parametrize(
    ("observation", "text"),
    [
        ({"result": {"content": [{"type": "text", "text": "3"}], "data": 3, "is_error": False}}, "3"),
        (
            {
                "result": {
                    "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
                    "data": None,
                }
            },
            "a\nb",
        ),
        ({"result": {"content": [{"type": "text", "text": "boom"}], "data": None, "is_error": True}}, "error: boom"),
        ({"result": None, "error": {"error_type": "tool_not_found", "message": "no such tool"}}, "error: no such tool"),
        ({"result": None, "error": "late"}, "error: late"),
        ({"result": {"rows": 2}}, '{"rows": 2}'),
        ({"result": {"content": "plain"}}, "plain"),
        ({}, ""),
    ],
)
def test_a_tools_answer_is_text(observation, text):
    assert tool_answer(Turn(observation)) == text
