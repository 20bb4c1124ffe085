"""Writes the labelled rows of the KTO example, data/train.jsonl, from the quickstart's pairs.

The rule: of each pair one answer is kept, chosen or rejected as a coin says, with its label; no prompt has both. This is what
thumbs up and thumbs down of users look like, who are shown one answer each.

Run `python examples/kto/make_rows.py`; it always writes the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAIRS = HERE.parent / "quickstart/data/train.jsonl"


def make_rows() -> list[dict[str, Any]]:
    """Return rows of the `unpaired` format, one for each pair."""
    rng = random.Random("labels")
    rows = []
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        pair, label = json.loads(line), rng.random() < 0.5
        rows.append({"prompt": pair["prompt"], "completion": pair["chosen" if label else "rejected"], "label": label})
    return rows


def main() -> None:
    """Write the file."""
    rows = make_rows()
    path = HERE / "data/train.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows, {sum(row['label'] for row in rows)} of them desirable")


if __name__ == "__main__":
    main()
