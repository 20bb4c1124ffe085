from __future__ import annotations

import subprocess
import sys

import truing_reward_model
from truing.registry import Registry


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["reward-model"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "reward-model"]
    assert (plugin.problem, plugin.dist) == (None, "truing-reward-model")
    assert registry.get("loss", "reward-model") is truing_reward_model.RewardModelLoss
    assert registry.get("loss", "ranked-reward-model") is truing_reward_model.RankedRewardModel
    assert registry.get("reward", "reward_model") is truing_reward_model.RewardModel
    assert set(registry.commands()) == {"score", "export-reward-model"}


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_reward_model as rm; rm.RewardModelLoss(); sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
