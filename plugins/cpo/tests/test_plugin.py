from __future__ import annotations

import subprocess
import sys

import pytest

import truing_cpo
from truing.config import build_config
from truing.errors import ConfigError, PluginError
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


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "simpo", "gamma": 0.5}, "method.gamma is not a known key; did you mean 'simpo_gamma'?"),
        ({"name": "cpo", "loss_type": "simpo"}, "is 'simpo', which is another setting here: write method: simpo"),
        ({"name": "cpo", "loss_type": "alphapo"}, "write method: {name: simpo, cpo_alpha: 0, alpha: ...}"),
        ("alphapo", "unknown method 'alphapo'; here it is {name: simpo, cpo_alpha: 0, alpha: ...}"),
    ],
    ids=str,
)
def test_names_of_other_tools_are_translated(method, message):
    rest = {"model": {"name": "m"}, "data": {"path": "d", "format": "preference"}, "output": {"dir": "o"}}
    with pytest.raises((ConfigError, PluginError)) as raised:
        build_config({"method": method, **rest}, registry=Registry.load(quiet=True))
    assert message in str(raised.value)
