"""Reward models: trained on preferences, asked from the command line, used as a reward, exported to transformers."""

from __future__ import annotations

import click

from truing import Loss, hookimpl
from truing.rewards import OpenedReward
from truing_reward_model.commands import export_reward_model, score
from truing_reward_model.losses import RankedRewardModel, RewardModelLoss
from truing_reward_model.reward import RewardModel

__all__ = ["RankedRewardModel", "RewardModel", "RewardModelLoss", "register_command", "register_loss", "register_reward"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the methods `reward-model` and `ranked-reward-model`."""
    return [RewardModelLoss, RankedRewardModel]


@hookimpl
def register_reward() -> list[type[OpenedReward]]:
    """Register the reward `reward_model`."""
    return [RewardModel]


@hookimpl
def register_command() -> list[click.Command]:
    """Register `truing score` and `truing export-reward-model`."""
    return [score, export_reward_model]
