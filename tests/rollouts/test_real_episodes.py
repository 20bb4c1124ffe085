"""Runs beside the real programs: ahead of a real vLLM, and in a real OpenEnv server with both engines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.rollouts import openenv_program
from tests.rollouts.real import RealVllm, metrics, save_model, truing, write_run
from tests.rollouts.test_real_runs import AGREEMENT, reward_rose

pytestmark = [pytest.mark.rollouts, pytest.mark.timeout(900)]
SERVER = Path(__file__).parents[2] / "examples" / "openenv" / "guess_server.py"


def completions(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "out" / "completions.jsonl").read_text().splitlines()]


def test_a_run_learns_ahead_of_its_samples(real_vllm: RealVllm, tmp_path: Path):
    """Forty steps with weights of up to two versions before, every prompt five times, and none of its tokens older."""
    real_vllm.restore(tmp_path)
    config = write_run(tmp_path, real_vllm.model, {**real_vllm.rollout, "max_staleness": 2}, trainer={"max_steps": 40})
    done = truing("train", config, **real_vllm.environment)
    assert done.returncode == 0, done.stderr
    assert reward_rose(tmp_path)
    lines = completions(tmp_path)
    assert Counter(line["sample"] for line in lines) == dict.fromkeys(range(64), 5 * 8)
    assert max(line["staleness/max"] for line in metrics(tmp_path) if "staleness/max" in line) == 2
    for line in lines:
        spans = line.get("versions") or [(line["version"], 0, line["tokens"])]
        assert all(line["step"] - 1 - version <= 2 for version, _, _ in spans)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_episodes_in_a_real_environment(real_vllm: RealVllm, tmp_path: Path, engine: str):
    """Guesses and hints turn by turn; what the sampler said of the policy's turns is what the trainer says of the whole row."""
    openenv_program.build()
    real_vllm.restore(tmp_path)
    model = real_vllm.model if engine == "vllm" else save_model(tmp_path / "model")
    writes = {"name": "vllm", **real_vllm.rollout} if engine == "vllm" else "transformers"
    with openenv_program.served(SERVER, tmp_path / "server.log") as (url, _):
        rollout = {
            "name": "openenv",
            "url": url,
            "engine": writes,
            "max_turns": 3,
            "max_turn_length": 6,
            "max_completion_length": 96,
        }
        config = write_run(tmp_path, model, rollout, rewards=["environment", "rewards.share_of_letters"], trainer={"max_steps": 20})
        done = truing("train", config, **real_vllm.environment)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path)
    assert max(line[AGREEMENT] for line in lines if AGREEMENT in line) < 1e-4
    assert max(line["completions/mean_turns"] for line in lines if "completions/mean_turns" in line) > 1
    episodes = completions(tmp_path)
    assert len(episodes) == 20 * 8 * 8 and {message["role"] for one in episodes for message in one["messages"]} >= {
        "assistant",
        "user",
    }
    assert sum(line["completions/lost"] for line in lines if "completions/lost" in line) == 0
    assert reward_rose(tmp_path)
