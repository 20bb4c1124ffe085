"""TRL's side of the comparisons, a module for each family of trainers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.profiles import Case

if TYPE_CHECKING:
    from tests.benchmarks.trl_arms.arm import TrlArm

ARMS = {
    "dpo": ("dpo", "DpoArm"),
    "grpo": ("grpo", "GrpoArm"),
    "kto": ("kto", "KtoArm"),
    "orpo": ("orpo_cpo", "OrpoArm"),
    "cpo": ("orpo_cpo", "CpoArm"),
    "simpo": ("orpo_cpo", "CpoArm"),
    "rm": ("reward_model", "RewardArm"),
    "sft": ("sft", "SftArm"),
}
"""The module and the class of each family of `profiles.METHODS`."""


def trl_arm(case: Case, folder: Path, *, best: bool) -> TrlArm:
    """Return the arm of a case, its models loaded. TRL is imported here, and nowhere else."""
    module, name = ARMS[case.method.family]
    arm: TrlArm = getattr(import_module(f"{__name__}.{module}"), name)(case, folder, best=best)
    return arm
