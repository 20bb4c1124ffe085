"""Three answers to each of the quickstart's questions: right, right among other words, and the task's own mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))

from tasks import answers  # the quickstart's, from the folder that the line above names

Row = dict[str, Any]


def three_answers(cfg: Any, dataset_idx: int = 0) -> tuple[Callable[[Row], Row], dict[str, list[str]]]:
    """Return a function from a pair's prompt to a `ranked` row, and the columns that it does without."""
    del cfg, dataset_idx

    def transform_fn(example: Row) -> Row:
        known = answers(example["prompt"][-1]["content"])
        ranked = enumerate((known.right, known.ramble, known.habit), start=1)
        return {"prompt": example["prompt"], "answers": [{"answer": text, "rank": rank} for rank, text in ranked]}

    return transform_fn, {"remove_columns": ["chosen", "rejected"]}
