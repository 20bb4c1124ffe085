"""Functions that were written for other tools run as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner

from tests.end_to_end.helpers import save_tiny_model, write_rows
from tests.end_to_end.math_env import math_reward
from truing.cli import main

ROWS = [{"question": f"What is {number} + 1?", "solution": f"One more. #### {number + 1}"} for number in range(4)]


def test_a_rollout_function_its_reward_and_its_transform_run_as_they_are(tmp_path):
    shutil.copy(Path(__file__).with_name("math_env.py"), tmp_path)
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    config = {
        "method": "grpo",
        "model": {"name": "model"},
        "data": {"path": "rows.jsonl", "format": "math_env.math_transform"},
        "rollout": {"name": "math_env.math_solver_rollout", "num_generations": 2, "max_completion_length": 400},
        "rewards": ["math_env.math_reward"],
        "trainer": {"batch_size": 1, "max_steps": 1, "logging_steps": 1},
        "output": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    result = CliRunner().invoke(main, ["train", str(tmp_path / "config.yaml")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "reward math_env.math_reward: its parameter `answers` is fed from the column `answer`" in result.output
    lines = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {line["prompt"] for line in lines} <= {row["question"] for row in ROWS}
    for line in lines:
        assert line["rewards"]["math_env.math_reward"] == math_reward([line["prompt"]], [line["completion"]], ["unused"])[0]
    assert len({line["completion"] for line in lines}) == 2
