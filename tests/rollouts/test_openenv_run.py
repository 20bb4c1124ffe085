"""Whole runs in an OpenEnv server: GRPO on the example's configuration, the quickstart's model as the policy."""

from __future__ import annotations

import json
import re
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.rollouts.fake_openenv import FakeServer
from tests.rollouts.openenv_program import BUILD_SECONDS, build, served
from truing.cli import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("rollout.num_generations=4", "trainer.batch_size=2", "trainer.logging_steps=1", "eval_data=null")


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains by examples/openenv/grpo.yaml with keys changed; gives the exit code and what was printed."""
    monkeypatch.chdir(ROOT)

    def train_(url: str, *overrides: str, resume: bool = False) -> tuple[int, str]:
        keys = [f"rollout.url={url}", f"output.dir={tmp_path / 'run'}", *overrides]
        done = CliRunner().invoke(main, ["train", "examples/openenv/grpo.yaml", *keys, *(["--resume"] if resume else [])])
        return done.exit_code, done.output

    return train_


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewards(run: Path) -> list[float]:
    return [line["rewards/environment/mean"] for line in lines(run / "metrics.jsonl") if "rewards/environment/mean" in line]


def test_a_run_in_the_fake_server(train, tmp_path):
    with FakeServer() as fake:
        code, output = train(fake.url, *SMALL, "trainer.max_steps=3")
        assert code == 0, output
        assert not fake.active and fake.counts["reset"] == 3 * 2 * 4
        assert {tuple(reset) for reset in fake.resets} == {("seed", "answer")}
    assert "episodes of up to 3 turns in openenv" in output
    episodes = lines(tmp_path / "run" / "completions.jsonl")
    assert len(episodes) == 24 and max(one["turns"] for one in episodes) > 1
    said = [message["content"] for one in episodes for message in one["messages"] if message["role"] == "user"]
    assert {"higher", "lower"} & set(said)
    assert all(line["completions/lost"] == 0 for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line)


def test_episodes_that_fail_are_left_out_and_counted(train, tmp_path):
    """Every sixth step is answered with garbage."""
    with FakeServer() as fake:

        async def sometimes(connection: Any, message: dict[str, Any]) -> bool:
            if message["type"] != "step" or fake.counts["step"] % 6:
                return False
            await connection.send("garbage")
            return True

        fake.fault = sometimes
        code, output = train(fake.url, *SMALL, "trainer.max_steps=2")
        assert code == 0, output
        assert not fake.active
    lost = [line["completions/lost"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "completions/lost" in line]
    assert sum(lost) > 0
    assert "no message of the protocol" in (tmp_path / "run" / "episodes.log").read_text()


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("reset", r"cannot connect to http://127.0.0.1:\d+: .*, for 2 s; start the server again"),
        ("step", r"'openenv' failed on \d of 8 completions, .* ended the connection instead of answering a step"),
    ],
)
def test_a_run_ends_saved_when_the_server_is_gone_and_goes_on_when_it_is_back(train, tmp_path, type_, message):
    """It ends as a killed process does, when an episode begins or in the middle of one."""
    keys = (*SMALL, "trainer.max_steps=6", "trainer.save_steps=2", "rollout.environment_timeout=2", "rollout.max_error_rate=0.1")
    with FakeServer() as fake:

        async def die(connection: Any, got: dict[str, Any]) -> bool:
            if got["type"] == type_ and fake.counts["reset"] > 20:
                await fake.end()
            return False

        fake.fault = die
        code, output = train(fake.url, *keys)
    assert code == 3, output
    assert re.search(message, output) and "--resume goes on" in output, output
    with FakeServer(port=fake.port) as again:
        code, output = train(again.url, *keys, resume=True)
        assert code == 0, output
        assert not again.active
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.rollouts
@pytest.mark.timeout(BUILD_SECONDS)
def test_the_reward_rises_in_the_real_server(train, tmp_path):
    build()
    with served(ROOT / "examples/openenv/guess_server.py", tmp_path / "server.log") as (url, _):
        code, output = train(url, "trainer.max_steps=25", "trainer.logging_steps=1", "eval_data=null")
    assert code == 0, output
    found = rewards(tmp_path / "run")
    assert len(found) == 25
    assert statistics.mean(found[-8:]) > statistics.mean(found[:3]) + 0.1


@pytest.mark.rollouts
@pytest.mark.timeout(BUILD_SECONDS)
def test_the_real_server_killed_in_the_middle(train, tmp_path):
    keys = (*SMALL, "trainer.max_steps=4", "trainer.save_steps=1", "rollout.environment_timeout=3")
    server = ROOT / "examples/openenv/guess_server.py"
    build()
    with served(server, tmp_path / "server.log") as (url, process):
        assert train(url, *keys, "trainer.max_steps=2")[0] == 0
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        code, output = train(url, *keys, resume=True)
        assert code == 3 and "cannot reach the OpenEnv server" in output, output
    with served(server, tmp_path / "again.log") as (url, _):
        code, output = train(url, *keys, resume=True)
        assert code == 0, output
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]
