"""Every online method finds the best arm of a bandit: its advantages and its loss alone, on a policy that is a table of logits."""

from __future__ import annotations

import attrs
import pytest
import torch

from truing import Layout, LossInputs
from truing.data.tree import Branch, PromptTree
from truing.reduce import StepCounts, reduce_output
from truing_dpo import OnlineDPO
from truing_gdpo import GDPO
from truing_grpo import GRPO
from truing_ppo import PPO
from truing_reinforce import RLOO, Reinforce

ARMS = (0.1, 0.3, 0.2, 1.0, 0.4, 0.5)
NOISE = 0.3
PROMPTS, GENERATIONS = 4, 8
STEPS = 60
"""Within which the best arm must have been found; each step draws 32 arms."""
SEEDS = range(20)
METHODS = {
    "grpo": GRPO(),
    "dr_grpo": GRPO(loss_type="dr_grpo", scale_rewards="none"),
    "gspo": GRPO(loss_type="gspo"),
    "gdpo": GDPO(),
    "ppo": PPO(kl_coef=0.0, num_ppo_epochs=1),
    "reinforce": Reinforce(baseline="moving_average"),
    "reinforce++": Reinforce(baseline="batch"),
    "rloo": RLOO(beta=0.0),
    "online-dpo": OnlineDPO(beta=1.0),
}


class Bandit:
    """A policy over arms, a critic, and the step of a method on what it draws."""

    def __init__(self, method, seed):
        self.method, self.state = method, dict(getattr(method, "initial_state", dict)())
        self.random = torch.Generator().manual_seed(seed)
        self.logits = torch.zeros(len(ARMS), requires_grad=True)
        self.value = torch.zeros((), requires_grad=True)
        self.start = torch.zeros(len(ARMS)).log_softmax(0)
        self.optimizer = torch.optim.Adam([self.logits, self.value], lr=0.2)

    @property
    def best(self):
        return float(self.logits.softmax(0)[ARMS.index(max(ARMS))])

    def _inputs(self, arms, layout=Layout.ROLLOUT, per_tree=GENERATIONS, **fields):
        size = len(arms)
        return LossInputs(
            layout=layout,
            token_logps=self.logits.log_softmax(0)[arms],
            reference_token_logps=self.start[arms],
            token_values=self.value.expand(size),
            sequence_ids=torch.arange(size),
            tree_ids=torch.arange(size // per_tree).repeat_interleave(per_tree),
            lengths=torch.ones(size, dtype=torch.int64),
            truncated=torch.zeros(size, dtype=torch.bool),
            max_completion_length=1,
            reward_weights=torch.ones(1),
            state=self.state,
            **fields,
        )

    def step(self):
        with torch.no_grad():
            arms = torch.multinomial(self.logits.softmax(0), PROMPTS * GENERATIONS, replacement=True, generator=self.random)
            noise = NOISE * torch.randn(len(arms), generator=self.random)
            rollouts = self._inputs(arms, rewards=(torch.tensor(ARMS)[arms] + noise)[:, None])
            advantages = self.method.advantages(rollouts)
        self.state = dict(advantages.state or self.state)
        if advantages.pairs is None:
            inputs = self._inputs(arms, advantages=advantages.values, columns=advantages.columns)
            trees = [_tree(GENERATIONS)] * PROMPTS
        else:
            inputs = self._inputs(arms[advantages.pairs.flatten()], Layout.PAIRED, 2)
            trees = [_tree(2)] * len(advantages.pairs)
        loss, _ = reduce_output(self.method(inputs), StepCounts.of([trees], inputs.layout), len(trees))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _tree(branches):
    return PromptTree(prompt_ids=(1,), branches=(Branch(token_ids=(1,), loss_mask=(True,)),) * branches, sample_id=0)


@pytest.mark.parametrize("name", METHODS)
def test_the_best_arm_is_found(name):
    for seed in SEEDS:
        bandit = Bandit(METHODS[name], seed)
        assert bandit.best == pytest.approx(1 / len(ARMS))
        for _ in range(STEPS):
            bandit.step()
        assert bandit.best > 0.9, (seed, bandit.best)


def test_without_a_difference_in_rewards_nothing_moves():
    flat = attrs.evolve(METHODS["grpo"])
    bandit = Bandit(flat, 0)
    arms = torch.zeros(GENERATIONS, dtype=torch.int64)
    advantages = flat.advantages(bandit._inputs(arms, rewards=torch.full((GENERATIONS, 1), 0.1)))
    assert not advantages.values.any()
