"""What a server may do wrong: the episode ends with a sentence, within its deadline, and nothing is left open."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from tests.rollouts.fake_openenv import FakeServer, failure, observation

from truing.errors import RolloutError
from truing_openenv.protocol import LostSessionError, SessionError
from truing_openenv.server import RECONNECTIONS

LATE = {"timeout": 1.0}


def sends(text):
    """Return a fault that answers steps with this text."""

    async def fault(connection, message):
        if message["type"] == "step":
            await connection.send(text)
        return message["type"] == "step"

    return fault


def turn(**data):
    return json.dumps({"type": "observation", "data": {"observation": {"hint": "x"}, "reward": 0.0, "done": False, **data}})


async def hang(connection, message):
    return message["type"] == "step"


async def drip(connection, message):
    """A message that never ends: a fragment of it every tenth of a second."""
    if message["type"] != "step":
        return False

    async def fragments():
        while True:
            yield " "
            await asyncio.sleep(0.1)

    await connection.send(fragments())
    return True


async def abort(connection, message):
    if message["type"] == "step":
        connection.transport.abort()
    return message["type"] == "step"


async def close_early(connection, message):
    if message["type"] == "step":
        await connection.close()
    return message["type"] == "step"


FAULTS = {
    "hangs": (hang, "did not answer a step within 1 s"),
    "drips": (drip, "did not answer a step within 1 s"),
    "dies": (abort, "ended the connection instead of answering a step: no close frame received or sent"),
    "closes": (close_early, "ended the connection instead of answering a step: received 1000"),
    "garbage": (sends("<html>"), "answered '<html>', which is no message of the protocol"),
    "binary": (sends(b"\xff\xfe"), "which is no message of the protocol"),
    "nested": (sends("[" * 100_000), "which is no message of the protocol"),
    "a number": (sends("3"), "Expected `object`, got `int`"),
    "another type": (sends(json.dumps({"type": "hello"})), "Invalid value 'hello'"),
    "the state": (sends(json.dumps({"type": "state", "data": {}})), "answered with its state, which was not asked for"),
    "no observation": (sends(json.dumps({"type": "observation", "data": {}})), "missing required field `observation`"),
    "text for an observation": (sends(turn(observation="x")), "Expected `object`, got `str`"),
    "text for a reward": (sends(turn(reward="1")), r"Expected `bool \| int \| float \| null`, got `str`"),
    "text for done": (sends(turn(done="no")), "Expected `bool`, got `str`"),
    "NaN": (sends(turn(reward=float("nan"))), "is no message of the protocol: JSON is malformed"),
    "infinity": (sends(turn(reward=float("inf"))), "is no message of the protocol: JSON is malformed"),
    "a huge reward": (sends(turn(reward=10**400)), "gave a reward that is larger than any floating-point number"),
    "a huge frame": (sends(turn(observation={"hint": "x" * 17_000_000})), "answered a step with more than 16,777,216 bytes"),
    "its own error": (sends(json.dumps(failure("EXECUTION_ERROR", "boom"))), "answered with EXECUTION_ERROR: boom"),
    "an unknown error": (sends(json.dumps({"type": "error", "data": {}})), "answered with an error: no reason"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_episode_ends_with_what_the_server_did(fake, opened, run, say, name):
    fault, message = FAULTS[name]
    environments = opened(**LATE)

    async def play():
        environment = environments.new()
        await environment.reset({}, 1)
        fake.fault = fault
        started = time.monotonic()
        with pytest.raises(SessionError, match=message):
            await environment.step(say("1"))
        elapsed = time.monotonic() - started
        await environment.close()
        return elapsed

    assert run(play()) < 10
    fake.fault = None
    assert environments.server.open_sessions == 0
    assert run(_plays(environments, say)) == 1.0


async def _plays(environments, say):
    environment = environments.new()
    await environment.reset({}, 3)
    found = await environment.step(say("15"))
    await environment.close()
    return found.reward


def test_an_answer_that_comes_late_is_not_taken_for_another_steps(fake, opened, run, say):
    async def late(connection, message):
        if message["type"] == "step":
            await asyncio.sleep(1.2)
            await connection.send(turn(reward=1.0, done=True))
        return message["type"] == "step"

    async def play():
        environment = opened(**LATE).new()
        await environment.reset({}, 1)
        fake.fault = late
        with pytest.raises(SessionError, match="did not answer a step"):
            await environment.step(say("1"))
        await asyncio.sleep(0.3)
        with pytest.raises(SessionError, match="owes this session an answer, so that it cannot be asked for a step"):
            await environment.step(say("1"))
        await environment.close()

    run(play())


def test_a_policys_text_of_any_kind_is_sent_or_answered(fake, opened, run, say):
    """Half a surrogate pair, which a tokenizer can give, and control characters."""
    schema = json.loads(json.dumps(fake.environment.schema))
    schema["action"]["properties"]["guess"] = {"type": "string"}
    fake.schema = json.dumps(schema)

    async def play():
        environment = opened().new()
        await environment.reset({}, 1)
        found = [await environment.step(say(text)) for text in ("\ud800", "\x00\x1b[2J", "x" * 100_000)]
        await environment.close()
        return found

    assert [one.messages[0]["content"][:15] for one in run(play())] == ["Invalid action:"] * 3


def failing(times, how):
    """Return a fault that fails the first resets."""
    left = times

    async def fault(connection, message):
        nonlocal left
        if message["type"] != "reset" or not left:
            return False
        left -= 1
        return await how(connection)

    return fault


async def _abort(connection):
    connection.transport.abort()
    return True


async def _hang(connection):
    return True


async def _raise(connection):
    await connection.send(json.dumps(failure("EXECUTION_ERROR", "no such task")))
    return True


def test_a_connection_lost_before_the_episode_begins_is_tried_anew(fake, opened, run, say):
    environments = opened(**LATE)
    fake.fault = failing(RECONNECTIONS, _abort)
    assert run(_plays(environments, say)) == 1.0
    fake.fault = failing(RECONNECTIONS + 1, _abort)
    with pytest.raises(LostSessionError, match="ended the connection instead of answering a reset"):
        run(_plays(environments, say))
    assert environments.server.open_sessions == 0 and run(_plays(environments, say)) == 1.0


@pytest.mark.parametrize(("how", "message"), [(_hang, r"did not answer a reset within"), (_raise, "EXECUTION_ERROR: no such task")])
def test_a_reset_that_fails_is_not_tried_anew(fake, opened, run, say, how, message):
    environments = opened(**LATE)
    fake.fault = failing(1, how)
    with pytest.raises(SessionError, match=message):
        run(_plays(environments, say))
    assert fake.counts["reset"] == 1 and environments.server.open_sessions == 0


def test_a_server_that_dies_and_comes_again(fake, opened, run, say):
    """Open episodes end, those that begin meanwhile too, and then it goes on."""
    environments = opened(**LATE)

    async def play():
        environment = environments.new()
        await environment.reset({}, 1)
        await asyncio.to_thread(fake.kill)
        with pytest.raises(LostSessionError):
            await environment.step(say("1"))
        await environment.close()
        started = time.monotonic()
        with pytest.raises(RolloutError, match=r"cannot connect to http://127.0.0.1:\d+: .*, for 1 s; start the server again"):
            await environments.new().reset({}, 1)
        assert time.monotonic() - started < 10

    run(play())

    async def while_it_comes_again():
        playing = asyncio.create_task(_plays(environments, say))
        await asyncio.sleep(0.2)
        with FakeServer(port=fake.port):
            return await playing

    assert run(while_it_comes_again()) == 1.0


def test_sessions_of_a_server_that_hangs_are_given_up(fake, opened, run):
    """Also when the connection is not closed in order, and for all of them at once."""
    environments = opened(**LATE)

    async def deaf(connection, message):
        await asyncio.sleep(3600)
        return True

    async def play():
        held = [environments.new() for _ in range(4)]
        await asyncio.gather(*(one.reset({}, 1) for one in held))
        fake.fault = deaf
        started = time.monotonic()
        await asyncio.gather(*(one.close() for one in held))
        return time.monotonic() - started

    assert run(play()) < 20 and environments.server.open_sessions == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (failure("SESSION_ERROR", "no display"), "answered with SESSION_ERROR: no display"),
        ({"type": "nonsense"}, "which is no message of the protocol"),
    ],
)
def test_a_server_that_gives_no_sessions_is_said_at_the_start(fake, opened, answer, message):
    async def refuse(connection, got):
        await connection.send(json.dumps(answer))
        return True

    fake.fault = refuse
    with pytest.raises(RolloutError, match=f"the OpenEnv server cannot be used: http://127.0.0.1:.* {message}"):
        opened(**LATE)


def test_a_server_whose_state_fails_has_sessions_all_the_same(fake, opened):
    async def fail(connection, message):
        if message["type"] == "state":
            await connection.send(json.dumps(failure("EXECUTION_ERROR", "reset first")))
        return message["type"] == "state"

    fake.fault = fail
    assert opened(max_sessions=3).capacity == 3


def test_metadata_that_fails_is_done_without(fake, opened):
    fake.environment = type("Nameless", (fake.environment,), {"__doc__": None})
    assert opened().description.about == ""


@pytest.mark.parametrize("tools", [None, [], [{"name": "a"}], "no"])
def test_tools_that_are_none_are_said_at_the_start(fake, opened, tools):
    fake.schema = json.dumps({"action": {"properties": {}}, "observation": {}})

    async def fault(connection, message):
        if message["type"] == "step":
            await connection.send(json.dumps(observation({"tools": tools})))
        return message["type"] == "step"

    fake.fault = fault
    with pytest.raises(RolloutError, match="as its tools, and each must have a name and an input_schema"):
        opened()


def test_proxies_are_not_asked_for_loopback(fake, opened, run, say, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run(_plays(opened(), say)) == 1.0
