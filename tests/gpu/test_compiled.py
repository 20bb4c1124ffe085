"""Compiled layers on a CUDA device: the numbers of those that are not, in half precision, for rows of any length."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tests.core.architectures import architecture_model
from tests.core.trees import random_trees
from truing.model.compiled import compile_layers
from truing.model.policy import Policy
from truing.model.probe import choose_forward, why_not_compiled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


def bf16():
    return torch.autocast("cuda", torch.bfloat16)


@pytest.mark.parametrize(("architecture", "breaks"), [("llama", False), ("mistral", False), ("qwen3", False), ("gemma2", True)])
def test_compiled_layers_are_exact(architecture, breaks):
    """Trees are longer than the windows; gemma2's soft cap is called between programs."""
    torch._dynamo.reset()
    counters.clear()
    policy = Policy(architecture_model(architecture).cuda(), "padded")
    choose_forward(policy, random_trees(2, longest=30), "shared_prefix", bf16)
    compile_layers(policy)
    for count in (1, 3, 6):
        assert why_not_compiled(policy, random_trees(count, branches=3, longest=10 * count), bf16) is None
    assert bool(counters["graph_break"]) == breaks
    assert counters["stats"]["unique_graphs"] <= (1 if not breaks else 12)
