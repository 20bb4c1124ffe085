"""Log-probabilities at the temperature that tokens were sampled at."""

from __future__ import annotations

import pytest
import torch

from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.loss import Needs
from truing.model.policy import Policy
from truing.testing import tiny_model

TEMPERATURE = 0.6


@pytest.mark.parametrize("own_logits", [False, True], ids=["head", "own logits"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_logits_are_divided_by_it(architecture, own_logits):
    model, trees = tiny_model(architecture=architecture, dtype=torch.float64), random_trees(3)
    batch = collate(trees, "padded")
    tempered = Policy(model, "padded", own_logits=own_logits)
    tempered.temperature = TEMPERATURE
    needs = Needs.ENTROPY
    found = tempered(batch, needs).tokens
    logits = model(**batch.model_inputs, use_cache=False).logits.flatten(0, 1)[batch.predictors]
    logps = (logits / TEMPERATURE).log_softmax(1)
    expected = logps.gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(found.logps, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.entropy, -(logps.exp() * logps).sum(1), rtol=1e-9, atol=1e-9)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ours, theirs = (torch.autograd.grad(total.square().sum(), weights, allow_unused=True) for total in (found.logps, expected))
    for one, other in zip(ours, theirs, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
