"""Writes the quickstart's data: pairs, data/train.jsonl and data/eval.jsonl, and sums, data/sums.jsonl and data/sums_eval.jsonl.

The rule: `chosen` is the right answer and nothing else. `rejected` is, for three pairs of four, the task's own mistake (see
tasks.py), and for one of four a ramble that has the right answer in it. Both are what the quickstart's model says by itself.
Rejected answers are shorter, as long, or longer than chosen ones, so that length alone does not tell them apart.

Run `python examples/quickstart/make_data.py`; it always writes the same bytes. `data/eval.jsonl` has prompts that are in neither
data/train.jsonl nor in the text that make_model.py trains on; sums are held out together with their mirror image.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from tasks import TASKS, answers

DATA_DIR = Path(__file__).parent / "data"
TRAIN_PAIRS_PER_TASK = 90
RAMBLE_SHARE = 0.25
SUMS = ("add", "subtract")
"""The tasks of the sums."""


def pair(prompt: str, rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """Return a row of the `preference` format."""
    known = answers(prompt)
    rejected = known.ramble if rng.random() < RAMBLE_SHARE else known.habit
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": known.right}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def make_pairs() -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    """Return the rows of each split, shuffled."""
    rng = random.Random("pairs")
    splits = [task.split() for task in TASKS]
    prompts = {
        "train": [prompt for train, _ in splits for prompt in rng.sample(train, min(len(train), TRAIN_PAIRS_PER_TASK))],
        "eval": [prompt for _, held_out in splits for prompt in held_out],
    }
    return {split: [pair(prompt, rng) for prompt in rng.sample(texts, len(texts))] for split, texts in prompts.items()}


def make_sums() -> dict[str, list[dict[str, object]]]:
    """Return the rows of each split of additions and subtractions: prompts with their answers, for methods that sample."""
    splits = [task.split() for task in TASKS if task.name in SUMS]
    prompts = {
        "sums": [prompt for train, _ in splits for prompt in train],
        "sums_eval": [prompt for _, held_out in splits for prompt in held_out],
    }
    rng = random.Random("sums")
    return {name: [sum_of(prompt) for prompt in rng.sample(texts, len(texts))] for name, texts in prompts.items()}


def sum_of(prompt: str) -> dict[str, object]:
    """Return a row of the `text` format: the prompt, and the answer for rewards."""
    return {"prompt": [{"role": "user", "content": prompt}], "answer": answers(prompt).right}


def as_jsonl(rows: Iterable[object]) -> str:
    """Return one line of JSON per row."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Write all files."""
    DATA_DIR.mkdir(exist_ok=True)
    for name, rows in {**make_pairs(), **make_sums()}.items():
        (DATA_DIR / f"{name}.jsonl").write_text(as_jsonl(rows), encoding="utf-8")
        print(f"{DATA_DIR / name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
