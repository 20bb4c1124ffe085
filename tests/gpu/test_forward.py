"""The forward on a CUDA device, where there is one: the same numbers as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.core.plain import gradients
from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.model.policy import Policy
from truing.model.probe import choose_forward
from truing.testing import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
def test_log_probs_and_gradients_are_those_of_the_cpu(architecture):
    model = tiny_model(architecture=architecture)
    trees = random_trees(4, branches=3, longest=40)
    found = []
    for device in ("cpu", "cuda"):
        policy = Policy(copy.deepcopy(model).to(device), "padded")
        choice = choose_forward(policy, trees, "auto")
        assert choice.forward == "shared_prefix", choice.reason
        logps = policy(collate(trees, choice.forward).to(torch.device(device))).tokens.logps
        found.append([tensor.detach().cpu() for tensor in (logps, *gradients(policy.causal_lm, logps))])
    for one, other in zip(*found, strict=True):
        # products of fp32 are summed in another order there
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_the_probe_accepts_bf16():
    policy = Policy(tiny_model(dtype=torch.bfloat16).to("cuda"), "padded")
    choice = choose_forward(policy, random_trees(4, longest=40), "auto")
    assert choice.reason == "every prompt computed once (probed: equal to padded rows)"
