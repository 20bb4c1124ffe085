"""Truing's step against TRL's trainers, where TRL is installed; `make bench` says how to make an environment with it."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("trl", reason="TRL is no dependency; the environment of `make bench` has it")

from tests.benchmarks.arms import step_with_gradients, worst_gradient
from tests.benchmarks.profiles import Case, count, make_batch
from tests.benchmarks.trl_arm import trl_arm
from tests.benchmarks.truing_arm import TruingArm

TOLERANCE = 1e-4


@pytest.mark.parametrize("best", [True, False], ids=["best", "shipped"])
@pytest.mark.parametrize("method", ["dpo", "dpo-precomputed", "dpo-lora", "grpo-3x8"])
def test_loss_and_every_gradient_of_a_step_are_those_of_trl(tmp_path, method, best):
    """Eight pairs or three groups of uneven lengths, a tiny Llama whose weights are away from the reference's."""
    case = Case.named(f"{method}-tiny-tiny", pairs=8)
    trees = make_batch(case, seed=0)
    assert count(trees).padded > count(trees).real > count(trees).unique
    arms = [TruingArm(case, tmp_path), trl_arm(case, tmp_path, best=best)]
    for arm in arms:
        arm.prepare([trees])
    (step, found), (expected_step, expected) = (step_with_gradients(arm, trees) for arm in arms)
    assert step.loss == pytest.approx(expected_step.loss, abs=TOLERANCE)
    assert abs(step.loss - math.log(2)) > 10 * TOLERANCE, "where policy and reference agree, every loss would be log 2"
    assert step.grad_norm == pytest.approx(expected_step.grad_norm, rel=TOLERANCE)
    difference, parameter = worst_gradient(found, expected)
    assert difference <= TOLERANCE, parameter
