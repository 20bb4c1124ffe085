from __future__ import annotations

import subprocess
import sys

import truing_cpo
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["cpo"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "cpo"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-cpo", {"loss": ("cpo", "simpo")})
    assert registry.get("loss", "cpo") is truing_cpo.CPO
    assert registry.get("loss", "simpo") is truing_cpo.SimPO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = "import sys, truing_cpo; truing_cpo.CPO(), truing_cpo.SimPO(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
