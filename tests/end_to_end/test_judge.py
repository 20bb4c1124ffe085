"""Online DPO with a judge: it compares the completions of a prompt, of which the best and the worst are a pair."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from tests.end_to_end.helpers import save_tiny_model, train_by, write_rows
from tests.end_to_end.test_online import completions
from tests.end_to_end.test_resume import history

JUDGE = '''
import json
from pathlib import Path


def letters(text):
    return sum(one.isascii() and one.isalpha() for one in text)


def judge(prompts, completions, **columns):
    """Of how many of the others each completion has more letters."""
    with Path(__file__).with_name("seen.jsonl").open("a") as seen:
        seen.write(json.dumps([prompts, completions]) + "\\n")
    if "bad" in prompts:
        raise RuntimeError("no opinion")
    return [sum(letters(one) > letters(other) for other in completions) for one in completions]


judge.compares = True
'''


def letters(text):
    return sum(one.isascii() and one.isalpha() for one in text)


def test_a_judge_ranks_whole_groups(tmp_path):
    """On one prompt of four it fails, which costs all four completions; it is never asked for fewer of a prompt."""
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", [{"prompt": text} for text in ("one", "bad", "two", "three")])
    (tmp_path / "judges.py").write_text(JUDGE)
    config = {
        "method": {"name": "online-dpo", "beta": 0.5},
        "model": {"name": "model"},
        "data": {"path": "rows.jsonl", "format": "text"},
        "rollout": {"num_generations": 4, "max_completion_length": 12},
        "rewards": ["judges.judge"],
        "trainer": {"batch_size": 4, "max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1},
    }
    train_by(tmp_path, config)
    calls = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(calls) == 3 * 4 and all(len(texts) == 4 and len(set(prompts)) == 1 for prompts, texts in calls)
    groups = [
        list(group) for _, group in itertools.groupby(completions(tmp_path / "run"), lambda line: (line["step"], line["sample"]))
    ]
    assert len(groups) == 3 * 3 and all(len(group) == 4 for group in groups)
    margins = []
    for group in groups:
        counts = [letters(line["completion"]) for line in group]
        ranks = [sum(one > other for other in counts) for one in counts]
        assert [line["rewards"]["judges.judge"] for line in group] == ranks
        best, worst = ranks.index(max(ranks)), ranks.index(min(ranks))
        paired = {best: 1, worst: -1} if max(ranks) > min(ranks) else {}
        assert [line["advantage"] for line in group] == [paired.get(place, 0) for place in range(4)]
        margins.append(max(ranks) - min(ranks))
    lines = history(tmp_path / "run")
    assert [line["completions/lost"] for line in lines] == [4] * 3 and sum(margins) > 0
    assert [line["objective/scores_margin"] for line in lines] == pytest.approx(
        [sum(margins[3 * step : 3 * step + 3]) / 3 for step in range(3)]
    )
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "before the first step policy and reference are the same"
    assert abs(lines[2]["rewards/margins"]) > 1e-5
