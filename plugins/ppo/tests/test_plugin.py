from __future__ import annotations

import subprocess
import sys

import truing_ppo
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["ppo"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "ppo"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-ppo", {"loss": ("ppo",)})
    assert registry.get("loss", "ppo") is truing_ppo.PPO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_ppo; method = truing_ppo.PPO(); method.rollout_needs, method.needs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
