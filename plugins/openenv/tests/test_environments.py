"""Episodes in a fake server."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.rollouts.fake_openenv import Calculator, FakeServer

from truing.errors import ConfigError, DataError, RolloutError
from truing_openenv.protocol import SessionError


async def episode(environment, *texts, columns=None, seed=3):
    """Play an episode and return its observations."""
    try:
        found = [await environment.reset(columns or {}, seed)]
        found += [await environment.step({"role": "assistant", "content": text}) for text in texts]
        return found
    finally:
        await environment.close()


def wait_until(true):
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def texts(observations):
    return [[message["content"] for message in one.messages] for one in observations]


def test_an_episode_is_played(fake, opened, run):
    """The number of seed 3 is 15."""
    environments = opened()
    found = run(episode(environments.new(), "25", "1", "I think 15"))
    assert texts(found) == [["Guess 0 to 40."], ["lower"], ["higher"], ["right"]]
    assert [(one.reward, one.done) for one in found] == [(None, False), (0.0, False), (0.0, False), (1 - 2 / 3, True)]
    assert found[-1].extra == {"observation": {"hint": "right"}, "invalid_actions": 0}
    assert all(message["role"] == "user" for one in found for message in one.messages)
    assert environments.server.open_sessions == 0 and environments.server.opened == 1 and not fake.active
    assert environments.name == "openenv" and list(environments.tools) == []


def test_an_invalid_action_is_answered_and_the_episode_goes_on(opened, run):
    found = run(episode(opened().new(), "none", "77", "2.5", "15"))
    assert texts(found)[1:] == [
        ["Invalid action: there is no number in it"],
        ["Invalid action: guess: Input should be less than or equal to 40"],
        ["Invalid action: guess: Input should be a valid integer"],
        ["right"],
    ]
    assert [one.reward for one in found[1:]] == [0.0, 0.0, 0.0, 1.0]
    assert found[-1].done and found[-1].extra["invalid_actions"] == 3


def test_many_invalid_actions_end_an_episode(opened, run):
    found = run(episode(opened(max_invalid_actions=2, invalid_reward=-1.0).new(), "a", "b"))
    assert [(one.done, one.reward) for one in found] == [(False, None), (False, -1.0), (True, -1.0)]


def test_the_same_seed_begins_alike_and_columns_choose_a_task(fake, opened, run):
    run(episode(opened().new(), seed=5))
    run(
        episode(
            opened(seed=False, reset_columns=("answer", "split")).new(), columns={"answer": "4", "split": "b", "solution": "no"}
        )
    )
    assert fake.resets == [{"seed": 5}, {"answer": "4", "split": "b"}]
    found = run(episode(opened(reset_columns=["answer"]).new(), "4", columns={"answer": "4"}))
    assert found[0].messages == () and found[-1].done and fake.resets[-1] == {"seed": 3, "answer": "4"}


def test_a_row_without_the_column_is_an_error(fake, opened, run):
    with pytest.raises(DataError, match="no column 'task', which rollout.reset_columns names; it has answer, id"):
        run(episode(opened(reset_columns=("task",)).new(), columns={"answer": 1, "id": 2}))
    assert not fake.resets


def test_tools_are_offered_and_called(opened, run, say):
    with FakeServer(Calculator) as server:
        environments = opened(server)
        tool = environments.tools[0]
        assert tool["type"] == "function" and tool["function"]["name"] == "add"
        assert tool["function"]["parameters"]["required"] == ["a", "b"]

        async def play():
            environment = environments.new()
            began = await environment.reset({}, 1)
            call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
            text = {"function": {"name": "add", "arguments": '{"a": 5, "b": 5}'}}
            bare = {"name": "subtract", "arguments": {}}
            broken = [{"function": {"name": "add", "arguments": "{"}}, {"function": {"arguments": {}}}]
            answers = [await environment.step(say("", call, text)), await environment.step(say("", bare, *broken))]
            last = await environment.step(say("3"))
            await environment.close()
            return began, *answers, last

        began, both, wrong, last = run(play())
    assert (began.messages, began.done) == ((), False)
    assert both.messages == (
        {"role": "tool", "name": "add", "content": "3", "tool_call_id": "1"},
        {"role": "tool", "name": "add", "content": "10"},
    )
    assert both.reward is None and not both.done
    contents = [message["content"] for message in wrong.messages]
    assert contents[0] == "error: Unknown tool: 'subtract'" and contents[1].startswith("error: the arguments are no JSON")
    assert contents[2] == "error: a call needs a name, and arguments that are a JSON object"
    assert wrong.reward == 0.0 and last.done and last.extra["invalid_actions"] == 2


def test_the_servers_limit_is_found_by_asking(opened):
    with FakeServer(max_sessions=3) as server:
        assert opened(server, max_sessions=None).capacity == 3
        assert not server.active
    with FakeServer(max_sessions=200) as server:
        assert opened(server, max_sessions=None).capacity == 64
        assert opened(server, max_sessions=5).capacity == 5


@pytest.mark.parametrize(("ranks", "most", "capacity"), [(2, 64, 3), (2, 4, 2), (4, 64, 1), (16, 64, 1)])
def test_processes_share_the_servers_sessions(opened, ranks, most, capacity):
    with FakeServer(max_sessions=6) as server:
        assert opened(server, num_ranks=ranks, max_sessions=most).capacity == capacity


def test_no_more_sessions_than_there_may_be(fake, opened, run):
    environments = opened(max_sessions=2)
    most = 0

    async def play():
        async def one():
            nonlocal most
            environment = environments.new()
            await environment.reset({}, 3)
            most = max(most, len(fake.active))
            await environment.step({"role": "assistant", "content": "15"})
            await environment.close()

        await asyncio.gather(*(one() for _ in range(20)))

    run(play())
    assert most == 2 and environments.server.opened == 20 and fake.counts["refusals"] == 0


def test_a_server_without_room_is_waited_for(opened, run):
    """Another client has one of its two places, which this one found when both were free."""
    with FakeServer(max_sessions=2) as server:
        ours, other = opened(server), opened(server)

        async def play():
            first, second, third = ours.new(), ours.new(), other.new()
            await first.reset({}, 1)
            await third.reset({}, 1)
            waiting = asyncio.create_task(second.reset({}, 1))
            while server.counts["refusals"] < 2:
                await asyncio.sleep(0.05)
            assert not waiting.done()
            await third.close()
            await asyncio.wait_for(waiting, 20)
            await first.close()
            await second.close()

        run(play())
        assert not server.active


def test_a_wait_for_a_place_has_a_deadline(opened, run):
    with FakeServer(max_sessions=2) as server:
        ours, other = opened(server, timeout=1.0), opened(server)

        async def play():
            held = [other.new(), other.new()]
            for one in held:
                await one.reset({}, 1)
            try:
                with pytest.raises(SessionError, match=r"no room for another session: Server at capacity; waited 1 s"):
                    await ours.new().reset({}, 1)
            finally:
                for one in held:
                    await one.close()
            environments = [ours.new() for _ in range(3)]
            await asyncio.gather(*(one.reset({}, 1) for one in environments[:2]))
            with pytest.raises(SessionError, match=r"none of 2 sessions at http://127.0.0.1:\d+ was free within 1 s"):
                await environments[2].reset({}, 1)
            for one in environments:
                await one.close()

        run(play())
        assert ours.server.open_sessions == 0 and not server.active


def test_a_cancelled_episode_leaves_nothing(fake, opened, run):
    environments = opened(max_sessions=1)

    async def hang(connection, message):
        return message["type"] == "reset"

    async def play():
        fake.fault = hang
        environment = environments.new()
        task = asyncio.create_task(environment.reset({}, 1))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await environment.close()
        fake.fault = None
        again = environments.new()
        await again.reset({}, 1)
        await again.close()

    run(play())
    assert not fake.active


def test_closing_ends_what_is_open_and_under_way(fake, opened, run):
    environments = opened()

    async def hang(connection, message):
        return message["type"] == "step"

    async def play():
        fake.fault = hang
        first, second = environments.new(), environments.new()
        await first.reset({}, 1)
        await second.reset({}, 1)
        stepping = asyncio.create_task(first.step({"role": "assistant", "content": "1"}))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(environments.close)
        with pytest.raises((asyncio.CancelledError, SessionError)):
            await stepping

    run(play())
    wait_until(lambda: not fake.active)
    environments.close()


def test_a_field_that_is_not_there_is_refused_and_the_loop_ends(fake, opened):
    with pytest.raises(ConfigError, match="action_field is 'move'; the fields of an action here are guess"):
        opened(action_field="move")
    with pytest.raises(ConfigError, match="observation_field is 'text'"):
        opened(observation_field="text")


def test_nobody_there_is_said(fake, opened):
    fake.kill()
    with pytest.raises(
        RolloutError, match=r"cannot reach the OpenEnv server http://127.0.0.1:\d+: .*; start it, or correct rollout.url"
    ):
        opened()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("<html>", "/schema is no JSON"),
        ("[1]", "/schema is '\\[1\\]', and must be a JSON object"),
        ("{}", "has no schemas `action` and `observation`"),
        ('{"action": "x", "observation": {}}', "has no schemas `action` and `observation`"),
        (" " * 5_000_000, "is longer than 4,194,304 bytes, which no schema is"),
    ],
)
def test_another_server_is_told(fake, opened, schema, message):
    fake.schema = schema
    with pytest.raises(RolloutError, match=message):
        opened()


def test_rewards_of_several_calls_are_added_until_one_ends_the_episode(opened, run, say):
    asked = []

    class Paying(Calculator):
        def step(self, action):
            answer = super().step(action)
            if "tool_name" in answer["data"].get("observation", {}):
                asked.append(action["arguments"]["a"])
                answer["data"] |= {"reward": 0.5, "done": action["arguments"]["a"] == 9}
            return answer

    def add(a):
        return {"name": "add", "arguments": {"a": a, "b": 1}}

    with FakeServer(Paying) as server:

        async def play():
            environment = opened(server).new()
            await environment.reset({}, 1)
            found = [await environment.step(say("", add(1), add(2))), await environment.step(say("", add(9), add(3)))]
            await environment.close()
            return found

        found = run(play())
        assert [(one.reward, one.done, len(one.messages)) for one in found] == [(1.0, False, 2), (0.5, True, 1)]
        assert asked == [1, 2, 9]
