"""Functions that were written for other tools run as they are."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

from tests.end_to_end.helpers import save_tiny_model, train_by, write_rows
from tests.end_to_end.math_env import math_reward

ROWS = [{"question": f"What is {number} + 1?", "solution": f"One more. #### {number + 1}"} for number in range(4)]

GSM8K = [
    {
        "question": "A mill grinds 600 sacks a day. How many in 2 days?",
        "answer": "Of 600 a day, 2 days make 2 * 600 = <<2*600=1200>>1,200.\n#### 1,200",
    },
    {"question": "Ada has 3 pens and buys 4. How many has she?", "answer": "3 + 4 = <<3+4=7>>7 pens.\n#### 7"},
    {"question": "A field earns 1,050,000 crowns, all spent. What is left?", "answer": "Nothing remains.\n#### 0"},
    {
        "question": "Two ships carry 512,000 tons each. How many?",
        "answer": "2 * 512,000 = <<2*512000=1024000>>1,024,000\n#### 1,024,000",
    },
]
"""Sums in the shape of GSM8K: working, four hashes, and the number, with commas in thousands."""
WRITTEN = """
import json
import random
from pathlib import Path


def rand_reward_func(completions, **kwargs) -> list[float]:
    with Path(__file__).with_name("seen.jsonl").open("a") as seen:
        seen.write(json.dumps({"completions": completions, "columns": kwargs}, default=repr) + "\\n")
    return [random.uniform(0, 1) for _ in completions]


def oai_gsm8k_transform(cfg, *args, **kwargs):
    def transform_fn(example, tokenizer=None):
        label = example["answer"].split("####")[-1].strip().replace(",", "")
        return {"prompt": [{"role": "user", "content": example["question"]}], "answer": label}

    return transform_fn, {"remove_columns": ["question"]}
"""


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
    }
    output = train_by(tmp_path, config)
    assert "reward math_env.math_reward: its parameter `answers` is fed from the column `answer`" in output
    lines = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {line["prompt"] for line in lines} <= {row["question"] for row in ROWS}
    for line in lines:
        assert line["rewards"]["math_env.math_reward"] == math_reward([line["prompt"]], [line["completion"]], ["unused"])[0]
    assert len({line["completion"] for line in lines}) == 2


def test_rewards_and_transform_of_gsm8k_beside_the_configuration_train(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "gsm8k_train.jsonl", GSM8K)
    (tmp_path / "rewards.py").write_text(WRITTEN)
    config = {
        "method": "grpo",
        "model": {"name": "model"},
        "data": {"path": "gsm8k_train.jsonl", "format": "rewards.oai_gsm8k_transform"},
        "rollout": {"num_generations": 3, "max_completion_length": 8},
        "rewards": ["rewards.rand_reward_func"],
        "trainer": {"batch_size": 2, "max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1},
    }
    train_by(tmp_path, config)
    lines = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1] * 6 + [2] * 6
    assert all(0 <= line["rewards"]["rewards.rand_reward_func"] <= 1 and line["advantage"] for line in lines)
    chats = {line["sample"]: line["prompt"] for line in lines}
    assert chats == {place: [{"role": "user", "content": row["question"]}] for place, row in enumerate(GSM8K)}
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    written = Counter(
        (text, answer) for call in seen for text, answer in zip(call["completions"], call["columns"]["answer"], strict=True)
    )
    answers = ("1200", "7", "0", "1024000")
    assert written == Counter((line["completion"], answers[line["sample"]]) for line in lines)
    assert all("question" not in call["columns"] for call in seen)
