"""Rewards: the contract, plain functions as rewards, and the registry that users decorate.

What calls them in a run, `truing.rewards.runner`, is imported by the driver alone.
"""

from truing.rewards.contract import DEFAULT_WARNING, DefaultReward, EnvironmentReward, OpenedReward, Reward, Scores
from truing.rewards.functions import SIGNATURES, CallableReward, FunctionReward
from truing.rewards.registry import RewardRegistry, as_reward, reward_registry
from truing.rewards.scoring import LARGEST_SCORE, score

__all__ = [
    "DEFAULT_WARNING",
    "LARGEST_SCORE",
    "SIGNATURES",
    "CallableReward",
    "DefaultReward",
    "EnvironmentReward",
    "FunctionReward",
    "OpenedReward",
    "Reward",
    "RewardRegistry",
    "Scores",
    "as_reward",
    "reward_registry",
    "score",
]
