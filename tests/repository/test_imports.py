"""What a command may import: a fresh interpreter each, since imports stay."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft")


def heavy_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_cheap():
    assert heavy_after("import truing; truing.Layout, truing.hookimpl, truing.Completion") == set()


def test_reading_a_configuration_is_cheap():
    assert heavy_after("from truing.config import load_config; from truing.registry import Registry; Registry.load()") == set()
