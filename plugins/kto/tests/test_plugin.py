from __future__ import annotations

import subprocess
import sys

import truing_kto
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["kto"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "kto"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-kto", {"loss": ("kto",)})
    assert registry.get("loss", "kto") is truing_kto.KTO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_kto, truing_kto.kto; truing_kto.KTO().needs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
