"""The same episodes in the real OpenEnv and in the fake that stands for it in other tests."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.rollouts.fake_openenv import Calculator, FakeServer, Guessing
from tests.rollouts.openenv_program import BUILD_SECONDS, build, served
from truing.errors import RolloutError
from truing_openenv import OpenEnvRollout
from truing_openenv.environments import OpenEnvironments
from truing_openenv.protocol import LostSessionError, SessionError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {Guessing: ROOT / "examples/openenv/guess_server.py", Calculator: ROOT / "tests/rollouts/calculator_server.py"}
REAL = (pytest.mark.rollouts, pytest.mark.timeout(BUILD_SECONDS))
Start = Callable[[type[Any]], tuple[str, Callable[[], None]]]


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=REAL)])
def start(request, tmp_path_factory) -> Iterator[Start]:
    """Starts a server; gives its address and what kills it."""
    if request.param == "real":
        build()
    with ExitStack() as stack:
        running: dict[type[Any], tuple[str, Callable[[], None]]] = {}

        def start_(environment: type[Any], *, anew: bool = False) -> tuple[str, Callable[[], None]]:
            if anew or environment not in running:
                if request.param == "fake":
                    most = 8 if environment is Calculator else 64
                    fake = stack.enter_context(FakeServer(environment, max_sessions=most))
                    found = (fake.url, fake.kill)
                else:
                    log = tmp_path_factory.mktemp("openenv") / "server.log"
                    url, process = stack.enter_context(served(SCRIPTS[environment], log))
                    found = (url, lambda: process.send_signal(signal.SIGKILL))
                if anew:
                    return found
                running[environment] = found
            return running[environment]

        yield start_


def opened(url: str, timeout: float = 20.0, **settings: Any) -> OpenEnvironments:
    return OpenEnvironments.open(OpenEnvRollout(url=url, **{"max_sessions": 2, **settings}), timeout)


def play(environments: OpenEnvironments, *messages: Any, columns: Any = None) -> list[Any]:
    """Play an episode, and return what was observed."""

    async def episode() -> list[Any]:
        environment = environments.new()
        try:
            found = [await environment.reset(columns or {}, 3)]
            for message in messages:
                written = {"content": message} if isinstance(message, str) else {"content": "", "tool_calls": message}
                found.append(await environment.step({"role": "assistant", **written}))
            return found
        finally:
            await environment.close()

    return asyncio.run(asyncio.wait_for(episode(), 60))


def said(observations: list[Any]) -> list[str]:
    return ["|".join(message["content"] for message in one.messages) for one in observations]


def test_what_it_is(start):
    environments = opened(start(Guessing)[0])
    try:
        assert environments.actions.schema.fields["guess"].items() >= {"type": "integer", "minimum": 0, "maximum": 40}.items()
        assert {tuple(schema.fields) for schema in environments.description.observations} == {("hint",)}
        assert environments.about.endswith(": a turn gives `guess`: the last number of the text; 2 sessions at once")
    finally:
        environments.close()


def test_an_episode(start):
    """The number of seed 3 is 15."""
    environments = opened(start(Guessing)[0])
    try:
        found = play(environments, "27", "what?", "120", "I say 15")
        assert said(found) == [
            "Guess 0 to 40.",
            "lower",
            "Invalid action: there is no number in it",
            "Invalid action: guess: Input should be less than or equal to 40",
            "right",
        ]
        assert [(one.reward, one.done) for one in found] == [
            (None, False),
            (0.0, False),
            (0.0, False),
            (0.0, False),
            (1 - 1 / 3, True),
        ]
        assert said(play(environments, "15")) == ["Guess 0 to 40.", "right"]
        lost = play(environments, "0", "0", "0")
        assert [one.done for one in lost] == [False] * 3 + [True] and lost[-1].reward == 0.0
    finally:
        environments.close()


def test_a_task_of_the_row(start):
    environments = opened(start(Guessing)[0], reset_columns=("answer",))
    try:
        assert said(play(environments, "8", columns={"answer": "8"})) == ["", "right"]
    finally:
        environments.close()


def test_an_error_of_the_environment_ends_the_episode(start):
    environments = opened(start(Guessing)[0], reset_columns=("answer",))
    try:
        with pytest.raises(SessionError, match="answered with EXECUTION_ERROR: invalid literal for int"):
            play(environments, "8", columns={"answer": "x"})
        assert environments.server.open_sessions == 0
        assert said(play(environments, "1", columns={"answer": "1"}))[-1] == "right"
    finally:
        environments.close()


def test_tools(start):
    environments = opened(start(Calculator)[0])
    try:
        assert [tool["function"]["name"] for tool in environments.tools] == ["add", "fail"]
        assert environments.tools[0]["function"]["parameters"]["required"] == ["a", "b"]
        calls = [
            {"name": "add", "arguments": {"a": 2, "b": 3}},
            {"name": "subtract", "arguments": {}},
            {"name": "add", "arguments": {"a": 2}},
            {"name": "fail", "arguments": {"why": "boom"}},
        ]
        began, answers, last = play(environments, calls, "5")
        contents = [message["content"] for message in answers.messages]
        assert began.messages == () and contents[:2] == ["5", "error: Unknown tool: 'subtract'"]
        assert "issing required argument" in contents[2] and contents[3] == "error: Error calling tool 'fail': boom"
        assert last.done
    finally:
        environments.close()


def test_a_reset_that_fails(start):
    environments = opened(start(Calculator)[0], reset_columns=("fail",))
    try:
        with pytest.raises(SessionError, match="answered with EXECUTION_ERROR: told to fail: now"):
            play(environments, columns={"fail": "now"})
    finally:
        environments.close()


def test_its_limit_is_found_and_places_are_free_at_once_when_sessions_end(start):
    """With as many sessions as there may be, one after the other: not one is refused, which would cost a pause."""
    environments = opened(start(Calculator)[0], max_sessions=None)
    try:
        assert environments.capacity == 8

        async def all_at_once() -> None:
            async def one() -> None:
                environment = environments.new()
                await environment.reset({}, 1)
                await environment.close()

            await asyncio.gather(*(one() for _ in range(24)))

        asyncio.run(asyncio.wait_for(all_at_once(), 60))
        assert (environments.server.opened, environments.server.refused) == (24, 0)
    finally:
        environments.close()


async def exchange(url: str, *texts: str) -> list[Any]:
    """Return what is answered to each of these messages, without the client."""
    async with connect(f"{url.replace('http', 'ws')}/ws", proxy=None) as connection:
        answers = []
        for text in texts:
            await connection.send(text)
            answers.append(json.loads(await asyncio.wait_for(connection.recv(), 20)))
        return answers


def test_messages(start):
    """What the client never sends, or only reads a part of."""
    url = start(Guessing)[0]
    texts = ['{"type": "state"}', '{"type": "hello"}', '{"type": "reset", "data": {"answer": "1"}}', '{"type": "step", "data": {}}']
    state, unknown, began, wrong = asyncio.run(exchange(url, *texts))
    assert state["type"] == "state" and state["data"]["number"] == 0
    assert unknown["data"] == {"message": "Unknown message type: hello", "code": "UNKNOWN_TYPE"}
    assert began == {
        "type": "observation",
        "data": {"observation": {"metadata": {}, "hint": ""}, "reward": None, "done": False},
    }
    assert wrong["data"]["code"] == "VALIDATION_ERROR" and wrong["data"]["errors"][0]["loc"] == ["guess"]
    assert wrong["data"]["errors"][0]["msg"] == "Field required"


def test_a_refusal(start):
    """It comes without a question, and the connection ends."""
    url = start(Calculator)[0]

    async def refused() -> Any:
        held = [await connect(f"{url.replace('http', 'ws')}/ws", proxy=None) for _ in range(8)]
        try:
            for one in held:
                await one.send('{"type": "state"}')
                await asyncio.wait_for(one.recv(), 20)
            async with connect(f"{url.replace('http', 'ws')}/ws", proxy=None) as ninth:
                answer = json.loads(await asyncio.wait_for(ninth.recv(), 20))
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(ninth.recv(), 20)
                return answer
        finally:
            await asyncio.gather(*(one.close() for one in held))

    data = asyncio.run(refused())["data"]
    assert (data["code"], data["active_sessions"], data["max_sessions"]) == ("CAPACITY_REACHED", 8, 8)


def test_killed_in_the_middle(start):
    url, kill = start(Guessing, anew=True)
    environments = opened(url, timeout=3.0)

    async def episode() -> None:
        environment = environments.new()
        await environment.reset({}, 3)
        await asyncio.to_thread(kill)
        with pytest.raises(LostSessionError, match="ended the connection instead of answering a step"):
            await environment.step({"role": "assistant", "content": "1"})
        await environment.close()
        with pytest.raises(RolloutError, match="cannot connect to .*, for 3 s; start the server again"):
            await environments.new().reset({}, 3)

    try:
        asyncio.run(asyncio.wait_for(episode(), 60))
        assert environments.server.open_sessions == 0
    finally:
        environments.close()
