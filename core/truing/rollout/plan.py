"""How many completions a run samples, of what length, and how many steps it takes on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from truing.config.classes import RolloutConfig, TrainConfig
from truing.errors import ConfigError
from truing.loss import Layout
from truing.rollout.completion import Sampling

GENERATIONS = 8
"""Completions of a prompt, where neither the configuration nor the method says how many."""


@attrs.frozen(kw_only=True)
class RolloutPlan:
    """The numbers of a run that samples its completions, all of them known before it starts."""

    prompts: int
    """Prompts of a rollout batch, of all ranks together."""
    num_generations: int
    """Completions of each."""
    num_eval_generations: int
    minibatches: int
    """Optimiser steps that one pass over a rollout batch is."""
    iterations: int
    """Passes over a rollout batch."""
    sampling: Sampling

    @property
    def updates(self) -> int:
        """Optimiser steps on the completions of a rollout batch."""
        return self.minibatches * self.iterations


def plan_misfits(rollout: RolloutConfig, method: Any) -> Iterator[tuple[str, str]]:
    """Yield each key of `rollout` that does not fit the method, and why."""
    generations, least = _generations(rollout, method), _of_method(method, "least_generations", 1)
    if generations < least:
        yield (
            "num_generations",
            f"is {generations}, and {method.name} compares the completions of one prompt with each other; give {least} or more",
        )
    length, own = rollout.max_completion_length, getattr(method, "max_completion_length", None)
    if own is not None and length not in (None, own):
        yield (
            "max_completion_length",
            f"is {length} and method.max_completion_length {own}; they are one limit, so set one of them, or both alike",
        )
    limit, least = _limit(rollout, method), _of_method(method, "least_completion_length", 1)
    if limit < least:
        yield "max_completion_length", f"is {limit}, and {method.name} with these settings needs {least} or more"


def plan_of(config: TrainConfig, prompts_per_step: int) -> RolloutPlan | None:
    """Return the plan of a run whose steps have so many prompts; None for a method that samples nothing.

    Raises ConfigError where the numbers do not fit each other.
    """
    rollout, method = config.rollout, config.method
    if method.layout is not Layout.ROLLOUT or rollout is None:
        return None
    for key, message in plan_misfits(rollout, method):
        raise ConfigError(f"rollout.{key} {message}")
    generations = _generations(rollout, method)
    minibatches = _minibatches(rollout.prompts_per_batch, _of_method(method, "num_minibatches", 1), prompts_per_step)
    return RolloutPlan(
        prompts=prompts_per_step * minibatches,
        num_generations=generations,
        num_eval_generations=rollout.num_eval_generations or generations,
        minibatches=minibatches,
        iterations=_of_method(method, "num_iterations", 1),
        sampling=Sampling(
            max_completion_length=completion_limit(config),
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        ),
    )


def _of_method(method: Any, name: str, default: int) -> int:
    return int(getattr(method, name, None) or default)


def _generations(rollout: RolloutConfig, method: Any) -> int:
    return rollout.num_generations or _of_method(method, "default_num_generations", GENERATIONS)


def completion_limit(config: TrainConfig) -> int:
    """Return the most tokens of a completion."""
    assert config.rollout is not None
    return _limit(config.rollout, config.method)


def _limit(rollout: RolloutConfig, method: Any) -> int:
    return rollout.max_completion_length or _of_method(method, "max_completion_length", Sampling().max_completion_length)


def _minibatches(prompts_per_batch: int | None, of_method: int, prompts_per_step: int) -> int:
    if prompts_per_batch is None:
        return of_method
    if prompts_per_batch % prompts_per_step:
        raise ConfigError(
            f"rollout.prompts_per_batch is {prompts_per_batch}, and a step has {prompts_per_step} prompts (trainer.batch_size x "
            "gradient_accumulation x processes); give a multiple of that"
        )
    found = prompts_per_batch // prompts_per_step
    if of_method not in (1, found):
        raise ConfigError(
            f"rollout.prompts_per_batch is {prompts_per_batch}, which is {found} steps of {prompts_per_step} prompts, and "
            f"the method's own setting cuts a pass into {of_method} steps; leave one of the two out"
        )
    return found
