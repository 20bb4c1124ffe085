"""The loss of `rloo` and its gradient against TRL's RLOOTrainer on given log-probabilities, where TRL is installed."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import attrs
import pytest
import torch

pytest.importorskip("trl", reason="TRL is no dependency; the environment of `make bench` has it")

from trl import RLOOTrainer

from truing.loss import Layout, Needs
from truing.testing import fake_inputs, reduce_step
from truing_reinforce import RLOO

CLIPPED = {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}


def trls(inputs, per_token_logps, *, epsilon_low, epsilon_high):
    """Return the loss of RLOOTrainer on padded log-probabilities, [B, longest], and its metrics."""
    mask = torch.zeros_like(per_token_logps)
    mask[inputs.sequence_ids, inputs.positions] = 1
    before = inputs.sum(inputs.proximal_token_logps)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (per_token_logps, torch.zeros_like(mask), None),
        aux_loss_enabled=False,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda value: value, reduce=lambda value, reduction: value),
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros_like(mask, dtype=torch.int64)
    batch = {"prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1], "completion_ids": ids, "completion_mask": mask}
    loss = RLOOTrainer._compute_loss(trainer, None, batch | {"old_logps": before, "advantages": inputs.advantages})
    return loss, {name: value for name, (value,) in trainer._metrics["train"].items()}


@pytest.mark.parametrize("epsilons", [(0.2, None), (0.05, 0.4)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_loss_gradient_and_metrics_are_those_of_trl(epsilons, seed):
    """Three prompts of four completions of 2 to 5 tokens, some of whose ratios are clipped on either side."""
    epsilon, epsilon_high = epsilons
    method = RLOO(epsilon=epsilon, epsilon_high=epsilon_high)
    rollouts = fake_inputs(Layout.ROLLOUT, needs=method.rollout_needs, seed=seed)
    inputs = attrs.evolve(
        fake_inputs(Layout.ROLLOUT, needs=Needs.PROXIMAL_LOGPS, seed=seed), advantages=method.advantages(rollouts).values
    )
    logps = inputs.proximal_token_logps + 3 * inputs.log_ratios
    padded = torch.zeros(len(inputs.lengths), int(inputs.lengths.max()), dtype=torch.float64)
    padded[inputs.sequence_ids, inputs.positions] = logps
    padded.requires_grad_()
    inputs = attrs.evolve(inputs, token_logps=logps.requires_grad_())

    expected, logged = trls(inputs, padded, epsilon_low=epsilon, epsilon_high=epsilon_high or epsilon)
    loss, metrics = reduce_step(method(inputs), inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12) and abs(loss.item()) > 1e-3
    (ours,), (theirs,) = torch.autograd.grad(loss, inputs.token_logps), torch.autograd.grad(expected, padded)
    torch.testing.assert_close(ours, theirs[inputs.sequence_ids, inputs.positions], rtol=1e-12, atol=1e-15)
    assert {name: metrics[name].item() for name in CLIPPED} == pytest.approx({name: logged[name] for name in CLIPPED})
    assert 0 < logged["clip_ratio/region_mean"] < 1
