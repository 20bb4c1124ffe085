from __future__ import annotations

import subprocess
import sys

import truing_grpo
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["grpo"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "grpo"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-grpo", {"loss": ("grpo",)})
    assert registry.get("loss", "grpo") is truing_grpo.GRPO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = (
        "import sys, truing_grpo, truing_grpo.grpo; method = truing_grpo.GRPO(loss_type='gspo', beta=0.1); "
        "method.needs, method.scope; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
