from __future__ import annotations

import subprocess
import sys

import truing_gdpo
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["gdpo"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "gdpo"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-gdpo", {"loss": ("gdpo",)})
    assert registry.get("loss", "gdpo") is truing_gdpo.GDPO


def test_importing_it_does_not_import_torch():
    """So that `truing check` stays fast: settings are read, and refused, without torch."""
    code = (
        "import sys, truing_gdpo, truing_gdpo.gdpo; method = truing_gdpo.GDPO(loss_type='gspo', beta=0.1); "
        "method.needs, method.scope; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
