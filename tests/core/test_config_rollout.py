"""Loading what the policy acts in."""

from __future__ import annotations

import pytest

from tests.core.config_fakes import DPO, InProcess, Sampled, load
from truing import ConfigError
from truing.config import RewardEntry, RolloutConfig
from truing.loss import Needs
from truing.rewards import DefaultReward, EnvironmentReward


def test_where_the_policy_acts_in_an_environment_that_is_what_rewards_it(tmp_path):
    (tmp_path / "game.py").write_text("class Game:\n    pass\n\ndef look():\n    pass\n")
    online = (tmp_path, f"{DPO}rollout: {{environment: game.Game, tools: game.look}}\n", "method=grpo", "data.format=text")
    config = load(*online)
    assert config.rewards == (RewardEntry(reward=EnvironmentReward()),)
    assert config.rollout == RolloutConfig(backend=InProcess(), environment="game.Game", tools=("game.look",))
    assert load(*online, "rewards=[default]").rewards == (RewardEntry(reward=DefaultReward()),)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("environment=game.Gama", "rollout.environment cannot be used: .*game.py defines no function 'Gama'; did you mean 'Game'"),
        ("tools=[game.Game,other.tool]", "rollout.tools cannot be used: no module for 'other.tool'"),
        ("tools=game.Game rollout.top_k=5", "rollout.top_k is 5, and the log-probabilities of a conversation's turns must be the"),
    ],
)
def test_what_an_episode_needs_is_looked_for_before_a_run(tmp_path, key, message):
    (tmp_path / "game.py").write_text("class Game:\n    pass\n")
    overrides = f"rollout.{key}".split()
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"{DPO}rollout: {{num_generations: 2}}\n", "method=grpo", "data.format=text", *overrides)


@pytest.mark.parametrize(
    ("attribute", "value", "override", "message"),
    [
        ("needs", Needs.BEHAVIOR_LOGPS, "rollout.top_p=0.9", "rollout.top_p is 0.9, and the log-probabilities of sampled tokens, "),
        ("least_generations", 2, "rollout.num_generations=1", "rollout.num_generations is 1, and grpo compares the completions"),
        (
            "least_completion_length",
            300,
            "trainer.seed=1",
            "rollout.max_completion_length is 256, and grpo with these settings",
        ),
    ],
)
def test_what_does_not_fit_the_method_is_refused_before_a_run(tmp_path, monkeypatch, attribute, value, override, message):
    given = (tmp_path, f"{DPO}rollout: {{num_generations: 2}}\n", "method=grpo", "data.format=text")
    load(*given, override)
    monkeypatch.setattr(Sampled, attribute, value, raising=False)
    with pytest.raises(ConfigError, match=message):
        load(*given, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_turns=3", "max_turns is 3, and nothing reads it without rollout.environment or rollout.tools"),
        ("max_turn_length=16", "max_turn_length is 16, and nothing reads it without rollout.environment or rollout.tools"),
        ("environment_timeout=5", "environment_timeout is 5.0, and nothing reads it without rollout.environment or rollout.tools"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(tmp_path, override, message):
    """Its default is not, nor is it where what reads it is there."""
    (tmp_path / "game.py").write_text("class Game:\n    pass\n\ndef look():\n    pass\n")
    given = (tmp_path, f"{DPO}rollout: {{num_generations: 2}}\n", "method=grpo", "data.format=text")
    with pytest.raises(ConfigError, match=f"rollout.{message}; leave it out, or set one of them"):
        load(*given, f"rollout.{override}")
    load(*given, "rollout.max_turns=8")
    for reader in ("rollout.environment=game.Game", "rollout.tools=game.look"):
        load(*given, f"rollout.{override}", reader)
