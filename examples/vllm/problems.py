"""Reads GSM8K: a question, and a worked answer whose last line is `#### NUMBER`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truing import RowError

INSTRUCTION = "Reason step by step, and put the final answer into \\boxed{}."

Row = dict[str, Any]


def gsm8k(cfg: Any, dataset_idx: int = 0) -> Callable[[Row], Row]:
    """Return a function from a row to a prompt and the number that answers it, which goes to the rewards."""
    del cfg, dataset_idx

    def transform_fn(example: Row) -> Row:
        _, mark, answer = example["answer"].rpartition("####")
        if not mark:
            raise RowError(f"column 'answer' must end with '#### NUMBER', got {example['answer'][-40:]!r}")
        prompt = [{"role": "user", "content": f"{example['question']}\n{INSTRUCTION}"}]
        return {"prompt": prompt, "answer": answer.strip().replace(",", "")}

    return transform_fn
