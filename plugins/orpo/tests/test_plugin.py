from __future__ import annotations

import subprocess
import sys

import truing_orpo
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["orpo"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "orpo"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-orpo", {"loss": ("orpo",)})
    assert registry.get("loss", "orpo") is truing_orpo.ORPO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_orpo; truing_orpo.ORPO(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
