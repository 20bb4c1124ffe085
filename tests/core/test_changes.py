"""What may change between a run and its resume, and what may not."""

from __future__ import annotations

from pathlib import Path

import attrs

from truing.config import build_config
from truing.registry import Registry
from truing.train.changes import FIXED, FREE, describe_changes, flat_settings


def make(**trainer):
    values = {
        "method": {"name": "dpo", "beta": 0.1},
        "model": {"name": "m"},
        "data": {"path": "a.jsonl", "format": "preference"},
        "trainer": trainer,
        "output": {"dir": "out"},
    }
    return build_config(values, registry=Registry.load())


def test_every_setting_has_its_dotted_key():
    flat = flat_settings(make(seed=7))
    assert flat["method.name"] == "dpo" and flat["method.beta"] == 0.1
    assert flat["data.0.path"] == "a.jsonl"
    assert flat["trainer.seed"] == 7
    assert not any(isinstance(value, Path) for value in flat.values())
    assert flat.keys() >= FREE | FIXED


def test_changes_are_told_apart_by_what_they_do():
    before = flat_settings(make(seed=7, learning_rate=1e-3, logging_steps=1))
    now = flat_settings(make(seed=8, learning_rate=2e-3, logging_steps=5))
    assert describe_changes(before, now) == (["trainer.seed (7, now 8)"], ["trainer.learning_rate (0.001, now 0.002)"])
    assert describe_changes(before, before) == ([], [])


def test_a_method_without_settings_is_its_name():
    config = attrs.evolve(make(), method=Registry.load().get("loss", "dpo")())
    assert flat_settings(config)["method.name"] == "dpo"
