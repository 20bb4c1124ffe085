from __future__ import annotations

import subprocess
import sys

import pytest

import truing_transformers
from truing.registry import Registry
from truing.testing import check_rollout
from truing_transformers import TransformersRollout


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["transformers"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "transformers"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-transformers", {"rollout": ("transformers",)})
    assert registry.get("rollout", "transformers") is truing_transformers.TransformersRollout


def test_importing_it_imports_neither_torch_nor_transformers():
    """So that `truing check` stays fast: settings are read, and refused, without them."""
    code = "import sys, truing_transformers; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("max_batch_tokens", [65_536, 1])
def test_it_keeps_the_promises_of_a_backend(max_batch_tokens):
    """One position is room for one request at a time."""
    check_rollout(TransformersRollout(max_batch_tokens=max_batch_tokens))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_batch_tokens must be > 0, got 0"):
        TransformersRollout(max_batch_tokens=0)
