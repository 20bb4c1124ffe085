"""A run without a reward says at its start that nothing will be learned, and nothing is."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.helpers import save_tiny_model, train_by, write_rows
from tests.end_to_end.test_online import completions
from truing.rewards import DEFAULT_WARNING


@pytest.mark.parametrize("method", ["grpo", "gdpo", "rloo"])
def test_a_run_without_a_reward_says_that_nothing_will_be_learned(tmp_path, method):
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{number}+{number}="} for number in range(4)])
    config = {
        "method": method,
        "model": {"name": "model"},
        "data": {"path": "rows.jsonl", "format": "text"},
        "rollout": {"num_generations": 3, "max_completion_length": 6},
        "trainer": {"batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1},
    }
    output = train_by(tmp_path, config)
    said = " ".join(output.split())
    assert said.count(DEFAULT_WARNING) == 1 and said.index(f"warning: {DEFAULT_WARNING}") < said.index("step 1/2")
    lines = completions(tmp_path / "run")
    assert len(lines) == 2 * 2 * 3
    assert all((line["rewards"], line["reward"], line["advantage"]) == ({"default": 0.0}, 0.0, 0.0) for line in lines)
    start, end = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "run/model"))
    assert all(torch.equal(weight, start[name]) for name, weight in end.items())
