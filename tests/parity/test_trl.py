"""Truing's step against TRL's trainers, where TRL is installed; `make bench` says how to make an environment with it."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("trl", reason="TRL is no dependency; the environment of `make bench` has it")

from tests.benchmarks.arms import Step, step_with_gradients, worst_gradient
from tests.benchmarks.profiles import METHODS, Case, count, make_batch
from tests.benchmarks.trl_arms import trl_arm
from tests.benchmarks.truing_arm import TruingArm

TOLERANCE = 1e-4

REWARDS = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
PAIRS = REWARDS | {"rewards/accuracies"}
LOGGED = {
    "dpo": PAIRS,
    "grpo": set(),
    "kto": REWARDS,
    "orpo": PAIRS | {"nll_loss", "log_odds_chosen", "log_odds_ratio"},
    "cpo": PAIRS | {"nll_loss"},
    "simpo": PAIRS,
    "rm": {"accuracy", "margin", "mean_reward"},
    "sft": set(),
}
"""The metrics that both sides must log by the same name, of each family; others that both log are compared too."""

INDIFFERENT = {"dpo": math.log(2), "kto": 0.5, "rm": math.log(2)}
"""The loss where policy and reference agree, or where a reward model's head is all zeros: a batch with it would show nothing."""


@pytest.mark.parametrize("best", [True, False], ids=["best", "shipped"])
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"grpo-1x8"}))
def test_loss_gradients_and_metrics_of_a_step_are_those_of_trl(tmp_path, method, best):
    """Eight prompts or three groups of uneven lengths, a tiny Llama whose weights are away from the reference's."""
    step, expected, worst = both_sides(method, tmp_path, best=best)
    assert step.loss == pytest.approx(expected.loss, abs=TOLERANCE)
    assert step.grad_norm == pytest.approx(expected.grad_norm, rel=TOLERANCE)
    difference, parameter = worst
    assert difference <= TOLERANCE, parameter
    family = METHODS[method].family
    assert abs(step.loss - INDIFFERENT.get(family, 0.0)) > 10 * TOLERANCE
    shared = step.metrics.keys() & expected.metrics.keys()
    assert shared >= LOGGED[family], LOGGED[family] - shared
    ours = {name: step.metrics[name] for name in shared}
    assert ours == pytest.approx({name: expected.metrics[name] for name in shared}, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("method", ["kto", "orpo", "simpo", "rm-centered", "sft-all"])
def test_a_step_in_several_micro_batches_is_that_of_trl_in_one(tmp_path, method):
    step, expected, (difference, parameter) = both_sides(method, tmp_path, tokens_per_batch=70)
    assert step.loss == pytest.approx(expected.loss, abs=TOLERANCE)
    assert difference <= TOLERANCE, parameter


def test_the_estimate_of_the_kl_divergence_is_trls_where_it_is_positive(tmp_path):
    """Clamped at 0, as it is for half of all batches, it would show nothing."""
    step, expected, (difference, parameter) = both_sides("kto", tmp_path, seed=POSITIVE_KL)
    assert expected.metrics["kl"] > 0.1
    assert step.metrics["kl"] == pytest.approx(expected.metrics["kl"], rel=TOLERANCE)
    assert step.loss == pytest.approx(expected.loss, abs=TOLERANCE)
    assert difference <= TOLERANCE, parameter


POSITIVE_KL = 1
"""The seed of such a batch."""


def both_sides(method, folder, *, best=True, seed=0, tokens_per_batch=None) -> tuple[Step, Step, tuple[float, str]]:
    """Run a step on each side; return both and the parameter whose gradients are the farthest apart."""
    case = Case.named(f"{method}-tiny-tiny", pairs=8, tokens_per_batch=tokens_per_batch)
    trees = make_batch(case, seed)
    counts = count(trees)
    assert counts.padded > counts.real >= counts.unique
    arms = [TruingArm(case, folder), trl_arm(case, folder, best=best)]
    for arm in arms:
        arm.prepare([trees])
    (step, found), (expected_step, expected) = (step_with_gradients(arm, trees) for arm in arms)
    return step, expected_step, worst_gradient(found, expected)
