from __future__ import annotations

import subprocess
import sys

import truing_dpo
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["dpo"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "dpo"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-dpo", {"loss": ("dpo", "ipo", "online-dpo")})
    assert registry.get("loss", "dpo") is truing_dpo.DPO
    assert registry.get("loss", "ipo") is truing_dpo.IPO
    assert registry.get("loss", "online-dpo") is truing_dpo.OnlineDPO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_dpo; truing_dpo.DPO(), truing_dpo.OnlineDPO().rollout_needs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
