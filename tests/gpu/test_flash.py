"""The flash kernel for CUDA devices on one: against a call per branch, in half precision."""

from __future__ import annotations

import pytest
import torch

from tests.core.rows import layout_of, tensors, with_gradients
from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.model import flash_cuda
from truing.model.attention import NAME, tree_attention
from truing.model.policy import Policy
from truing.model.probe import choose_forward
from truing.testing import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

DEVICE = "cuda"
LAYOUTS = {
    "short": [(3, [2, 4]), (1, []), (5, [1, 0, 3]), (2, [0])],
    "blocks": [(300, [129, 128]), (1, [257]), (128, [1])],
    "many": [(40, [20, 30])] * 30,
    "no branch": [(7, []), (200, [0])],
    "single tokens": [(1, [1]), (1, [1])],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("size", "kv_heads", "has_sinks", "window"),
    [(64, 4, False, None), (128, 2, True, None), (8, 1, False, None), (256, 4, True, None), (64, 2, True, 100), (32, 4, False, 3)],
)
def test_it_is_as_exact_as_a_call_per_branch(dtype, size, kv_heads, has_sinks, window):
    """Both are compared with double precision: outputs, and gradients of queries, keys, values and sinks."""
    for trees in LAYOUTS.values():
        layout = layout_of(trees).to(torch.device(DEVICE))
        inputs = tensors(layout, kv_heads=kv_heads, size=size, dtype=dtype, device=DEVICE)
        if has_sinks:
            inputs.append(torch.randn(4, dtype=dtype, device=DEVICE, requires_grad=True))
        doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
        exact = results(layout, doubles, use_flash=False, sliding_window=window)
        flash, per_branch = (results(layout, inputs, use_flash=use_flash, sliding_window=window) for use_flash in (True, False))
        for one, other, truth in zip(flash, per_branch, exact, strict=True):
            assert off(one, truth) <= 2 * off(other, truth) + torch.finfo(dtype).eps * float(truth.detach().abs().max())


def results(layout, inputs, **options):
    output, _ = tree_attention(
        torch.nn.Identity(), *inputs[:3], None, truing_layout=layout, s_aux=(inputs[3:] or [None])[0], **options
    )
    return with_gradients(output, inputs)


def off(found, truth):
    return float((found.detach().double() - truth.detach()).abs().max())


def test_the_host_does_not_wait_for_the_device():
    layout = layout_of(LAYOUTS["short"]).to(torch.device(DEVICE))
    inputs = tensors(layout, size=64, dtype=torch.bfloat16, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output, _ = tree_attention(torch.nn.Identity(), *inputs, None, truing_layout=layout)
        torch.autograd.grad(output.sum(), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_in_mixed_precision_takes_it(monkeypatch):
    calls = []
    right = flash_cuda.forward
    monkeypatch.setattr(flash_cuda, "forward", lambda *arguments: calls.append(arguments) or right(*arguments))
    model = tiny_model().to(DEVICE)
    policy, trees = Policy(model, "padded"), random_trees(4, longest=40)
    choice = choose_forward(policy, trees, "auto", lambda: torch.autocast(DEVICE, torch.bfloat16))
    assert choice.reason == "every prompt computed once (probed: equal to padded rows)"
    assert model.config._attn_implementation == NAME
    calls.clear()
    with torch.autocast(DEVICE, torch.bfloat16):
        policy(collate(trees, "shared_prefix").to(torch.device(DEVICE)))
    assert len(calls) == model.config.num_hidden_layers
