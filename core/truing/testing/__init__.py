"""What a plugin's tests need: fakes, and checks of the promises that core relies on."""

from truing.testing.dialect import check_dialect
from truing.testing.fakes import (
    FakeRollout,
    FakeWeights,
    LetterReward,
    fake_completions,
    fake_context,
    preference_rows,
)
from truing.testing.inputs import fake_inputs, take_branches, take_trees
from truing.testing.loss import check_loss
from truing.testing.models import tiny_model, tiny_tokenizer
from truing.testing.reward import check_reward
from truing.testing.rollout import check_rollout
from truing.testing.step import check_cut, reduce_step
from truing.testing.strategy import check_dataset_strategy

__all__ = [
    "FakeRollout",
    "FakeWeights",
    "LetterReward",
    "check_cut",
    "check_dataset_strategy",
    "check_dialect",
    "check_loss",
    "check_reward",
    "check_rollout",
    "fake_completions",
    "fake_context",
    "fake_inputs",
    "preference_rows",
    "reduce_step",
    "take_branches",
    "take_trees",
    "tiny_model",
    "tiny_tokenizer",
]
