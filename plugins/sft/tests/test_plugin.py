from __future__ import annotations

import subprocess
import sys

import truing_sft
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["sft"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "sft"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-sft", {"loss": ("sft",)})
    assert registry.get("loss", "sft") is truing_sft.SFT


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_sft; truing_sft.SFT(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
