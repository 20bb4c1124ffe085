from __future__ import annotations

import subprocess
import sys

import pytest

import truing_orpo
from truing.config import build_config
from truing.errors import ConfigError
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


@pytest.mark.parametrize("name", ["lambda", "lambda_", "orpo_lambda"])
def test_the_papers_name_of_beta_is_translated(name):
    rest = {"model": {"name": "m"}, "data": {"path": "d", "format": "preference"}, "output": {"dir": "o"}}
    with pytest.raises(ConfigError) as raised:
        build_config({"method": {"name": "orpo", name: 0.1}, **rest}, registry=Registry.load(quiet=True))
    assert f"method.{name} is not a known key; did you mean 'beta'?" in str(raised.value)
