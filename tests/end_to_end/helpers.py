"""A tiny run for end-to-end tests: made-up preferences, a random model, seconds on a CPU."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from truing.cli import main
from truing.testing import tiny_model, tiny_tokenizer


def preferences(count: int = 24) -> list[dict[str, str]]:
    """Pairs of different lengths; the better answer is the polite one."""
    draw = random.Random(0)
    words = ["red", "green", "blue", "seven", "twelve", "a", "of"]

    def some(low: int, high: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(low, high)))

    return [{"prompt": some(1, 5) + ": ", "chosen": "yes " + some(1, 4), "rejected": "no " + some(1, 6)} for _ in range(count)]


def save_tiny_model(folder: Path, **options: Any) -> Path:
    """Write a tiny model and its tokenizer where the command line can load them."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_config(folder: Path, **trainer: Any) -> Path:
    """Write a configuration, a model and data into `folder`, and return the configuration's path."""
    save_tiny_model(folder / "model")
    write_rows(folder / "pairs.jsonl", preferences())
    settings = {"batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, **trainer}
    config = {
        "method": "dpo",
        "model": {"name": str(folder / "model")},
        "data": {"path": str(folder / "pairs.jsonl"), "format": "preference"},
        "trainer": settings,
        "output": {"dir": str(folder / "run")},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    return path


def train_by(folder: Path, config: dict[str, Any]) -> str:
    """Write a configuration into `folder`, train by it into `folder`/run, and return what the terminal showed."""
    path = folder / "config.yaml"
    path.write_text(json.dumps({**config, "output": {"dir": str(folder / "run")}}))
    result = CliRunner().invoke(main, ["train", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
