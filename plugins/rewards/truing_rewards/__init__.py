"""Rewards that are computed from a completion and its row: answers, formats, lengths, repetition, tests of code."""

from __future__ import annotations

from truing import Reward, hookimpl
from truing_rewards.answers import ExactMatch, MathAccuracy
from truing_rewards.formats import FormatThink, Regex
from truing_rewards.lengths import CosineLength, Length, RepetitionPenalty, SoftOverlong
from truing_rewards.python_tests import PythonTests

__all__ = [
    "CosineLength",
    "ExactMatch",
    "FormatThink",
    "Length",
    "MathAccuracy",
    "PythonTests",
    "Regex",
    "RepetitionPenalty",
    "SoftOverlong",
    "register_reward",
]


@hookimpl
def register_reward() -> list[type[Reward]]:
    """Register the nine rewards."""
    return [
        CosineLength,
        ExactMatch,
        FormatThink,
        Length,
        MathAccuracy,
        PythonTests,
        Regex,
        RepetitionPenalty,
        SoftOverlong,
    ]
