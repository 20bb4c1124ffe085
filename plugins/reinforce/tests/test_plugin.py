from __future__ import annotations

import subprocess
import sys

import truing_reinforce
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["reinforce"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "reinforce"]
    assert (plugin.problem, plugin.dist) == (None, "truing-reinforce")
    assert dict(plugin.names) == {"loss": ("reinforce", "rloo")}
    assert registry.get("loss", "reinforce") is truing_reinforce.Reinforce
    assert registry.get("loss", "rloo") is truing_reinforce.RLOO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_reinforce as it; it.Reinforce().needs, it.RLOO().rollout_needs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
