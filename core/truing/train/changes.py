"""What changed between a run's configuration and the one that resumes it, and which of it may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from truing.config import TrainConfig
from truing.config.dump import plain
from truing.redact import redacted

FREE = {
    "output.dir",
    "trainer.logging_steps",
    "trainer.eval_steps",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "trainer.save_in_background",
    "trainer.save_timeout",
    "trainer.max_skipped_steps",
    "trainer.report_to",
}
"""Keys that change no number of the run."""
FIXED = {"recipe", "method.name", "trainer.seed"}
"""Keys without which it would be another run. Data and weights are compared by their contents, not by the keys that name them."""


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return every setting by its dotted key, as JSON has it, without secrets."""
    return dict(_flat(redacted(plain(config)), ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{key}.{index}")
    else:
        yield (f"{key}.name" if key == "method" else key), value


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return in words the changed keys that may not change, and those that may but give the run another course."""
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) and key not in FREE]
    words = {key: f"{key} ({before.get(key)}, now {now.get(key)})" for key in changed}
    return [words[key] for key in changed if key in FIXED], [words[key] for key in changed if key not in FIXED]
