"""Online methods find the best of sixteen arms, an arm being two tokens: the mathematics alone, without a model and a driver."""

from __future__ import annotations

from math import log

import attrs
import pytest
import torch
from torch import Tensor

from truing.loss import Layout, LossInputs
from truing.testing import reduce_step, take_branches
from truing_dpo import OnlineDPO
from truing_ppo import PPO
from truing_reinforce import RLOO, Reinforce

SEEDS = range(20)
TOKENS = 4
PROMPTS, GENERATIONS = 4, 8
STEPS = 30
"""Optimiser steps are these, times the passes of a method that takes several."""


@attrs.define
class Bandit:
    """A policy that is a table of logits, a critic that is a table of values, and the mean rewards of the arms."""

    seed: int
    means: Tensor = attrs.field(init=False)
    """[first token, second token]: 1 for the best arm, 0 to 0.6 for the others; what is paid has a standard deviation of 0.1."""
    generator: torch.Generator = attrs.field(init=False)
    first: Tensor = attrs.field(factory=lambda: torch.zeros(TOKENS, requires_grad=True))
    second: Tensor = attrs.field(factory=lambda: torch.zeros(TOKENS, TOKENS, requires_grad=True))
    values: Tensor = attrs.field(factory=lambda: torch.zeros(1 + TOKENS, requires_grad=True))

    def __attrs_post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.means = 0.6 * torch.rand(TOKENS * TOKENS, generator=self.generator)
        self.means[torch.randint(TOKENS * TOKENS, (), generator=self.generator)] = 1.0

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return arms, [B], and what they pay, [B]."""
        probabilities = self.probabilities().flatten()
        arms = torch.multinomial(probabilities, PROMPTS * GENERATIONS, replacement=True, generator=self.generator)
        return arms, self.means[arms] + 0.1 * torch.randn(len(arms), generator=self.generator)

    def probabilities(self) -> Tensor:
        """Return the probability of each arm, [first token, second token]."""
        return (self.first.log_softmax(0)[:, None] + self.second.log_softmax(1)).detach().exp()

    def inputs(self, arms: Tensor, rewards: Tensor, **fields: object) -> LossInputs:
        """Return the batch of these arms as the policy and the critic see it now."""
        first, second = arms // TOKENS, arms % TOKENS
        logps = torch.stack((self.first.log_softmax(0)[first], self.second.log_softmax(1)[first, second]), 1).flatten()
        values = torch.stack((self.values[0].expand(len(arms)), self.values[1 + first]), 1).flatten()
        return LossInputs(
            layout=Layout.ROLLOUT,
            token_logps=logps,
            token_values=values,
            reference_token_logps=torch.full_like(logps, -log(TOKENS)),
            sequence_ids=torch.arange(len(arms)).repeat_interleave(2),
            tree_ids=torch.arange(PROMPTS).repeat_interleave(GENERATIONS),
            lengths=torch.full((len(arms),), 2),
            rewards=rewards[:, None],
            reward_weights=torch.ones(1),
            truncated=torch.zeros(len(arms), dtype=torch.bool),
            max_completion_length=2,
            **fields,
        )


def probability_of_the_best_arm(method, seed):
    bandit = Bandit(seed)
    optimizer = torch.optim.Adam([bandit.first, bandit.second, bandit.values], lr=0.2)
    state = method.initial_state() if hasattr(method, "initial_state") else {}
    for _ in range(STEPS):
        arms, rewards = bandit.sample()
        with torch.no_grad():
            rollouts = bandit.inputs(arms, rewards, state=state)
            found = method.advantages(rollouts)
        state = found.state or state
        if found.pairs is not None and not len(found.pairs):
            continue
        for iteration in range(getattr(method, "num_iterations", 1)):
            inputs = bandit.inputs(
                arms,
                rewards,
                state=state,
                advantages=found.values,
                columns=found.columns,
                proximal_token_logps=rollouts.token_logps if iteration else None,
            )
            if found.pairs is not None:
                inputs = take_branches(inputs, found.pairs.flatten().tolist(), Layout.PAIRED)
            optimizer.zero_grad()
            reduce_step(method(inputs), inputs)[0].backward()
            optimizer.step()
    return bandit.probabilities().flatten()[bandit.means.argmax()].item()


METHODS = [
    PPO(),
    Reinforce(baseline="none"),
    Reinforce(baseline="moving_average"),
    Reinforce(baseline="leave_one_out", beta=0.02, kl_in="loss"),
    Reinforce(),
    RLOO(),
    RLOO(num_iterations=3),
    OnlineDPO(),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'baseline', '')}")
def test_the_best_arm_is_found(method):
    found = [probability_of_the_best_arm(method, seed) for seed in SEEDS]
    assert min(found) > 0.8, found
