"""The flash kernel for CUDA devices, without one: what it is called with and what is made of it, over `tests.core.varlen`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.core.architectures import architecture_model
from tests.core.plain import gradients, plain_logps
from tests.core.rows import HEADS, SIZE, layout_of, tensors, with_gradients
from tests.core.test_architectures import TOLERANCE
from tests.core.trees import random_trees
from tests.core.varlen import emulated
from truing.data.batch import collate
from truing.model import flash, flash_cpu, flash_cuda
from truing.model.attention import Rules, _per_branch, tree_attention, use_tree_attention
from truing.model.flash import flash_attention, flash_kernel
from truing.model.loading import enable_checkpointing
from truing.model.policy import Policy

CPU = torch.device("cpu")
TREES = [(3, [2, 4]), (1, []), (5, [1, 0, 3]), (2, [0])]
"""Lengths of prompts and of their branches' inputs."""


@pytest.fixture(scope="module", autouse=True)
def emulation():
    with emulated() as calls:
        yield calls


@pytest.fixture
def everywhere(monkeypatch, emulation):
    """The kernel for CUDA devices in every layer; what it was called for."""
    monkeypatch.setattr(flash_cuda, "supports", lambda query, key, value, layout, window: layout.segments is not None)
    monkeypatch.setattr(flash, "KERNELS", (flash_cuda,))
    emulation.clear()
    return emulation


@settings(deadline=None, max_examples=60)
@given(
    trees=st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 4]),
    has_sinks=st.booleans(),
    window=st.none() | st.integers(1, 8),
    is_turned=st.booleans(),
    scale=st.sampled_from([SIZE**-0.5, 0.7]),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_a_call_per_branch(trees, kv_heads, has_sinks, window, is_turned, scale, seed):
    layout = layout_of(trees)
    inputs = tensors(layout, kv_heads=kv_heads, seed=seed)
    if is_turned:  # a model may hand over what lies in memory in any order
        inputs = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in inputs]
    sinks = [torch.randn(HEADS, dtype=torch.float64, requires_grad=True)] if has_sinks else []
    rules = Rules(scale=scale, window=window, sinks=sinks[0] if sinks else None)
    found = flash_attention(*inputs, layout.to(CPU), scale, rules.sinks, flash_cuda, window)
    expected = _per_branch(*inputs, layout, rules)
    for one, other in zip(with_gradients(found, inputs + sinks), with_gradients(expected, inputs + sinks), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    layout = layout_of(TREES)
    inputs = tensors(layout, kv_heads=2, dtype=dtype)
    found = with_gradients(flash_attention(*inputs, layout.to(CPU), 0.3, None, flash_cuda), inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    require_near(found, with_gradients(_per_branch(*wide, layout, Rules(scale=0.3)), wide), dtype)


def test_autocast_decides_the_type(everywhere):
    """Whatever is handed over, in which some models leave queries and keys; gradients are in the type of what was."""
    layout = layout_of(TREES).to(CPU)
    inputs = tensors(layout, kv_heads=2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = tree_attention(torch.nn.Identity(), *inputs, None, truing_layout=layout)
    assert output.dtype == torch.bfloat16
    found = with_gradients(output.float(), inputs)
    assert everywhere == ["forward torch.bfloat16", "backward torch.bfloat16"]
    require_near(found, with_gradients(_per_branch(*inputs, layout, Rules()), inputs), torch.bfloat16)


def require_near(found, expected, dtype):
    """Inputs, the output and gradients are rounded once each; a backward reads a rounded output."""
    for one, other in zip(found, expected, strict=True):
        bound = 3 * torch.finfo(dtype).eps * float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=bound)


def test_the_emulation_is_what_the_kernel_for_cpus_does():
    """Handed an output and a log-sum-exp that are not its own, as well: the backward of both reads these."""
    layout = layout_of([(6, [])]).to(CPU)
    query, key, value = (tensor.detach() for tensor in tensors(layout))
    (part,) = flash_cuda.parts(layout, None)
    found = [kernel.forward(query, key, value, part, 0.3) for kernel in (flash_cuda, flash_cpu)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-13)
    output, lse = found[0][0] * 0.5 + 0.1, found[0][1] + torch.linspace(0, 1, 6, dtype=torch.float64)
    grads = [kernel.backward(value + 1, query, key, value, output, lse, part, 0.3) for kernel in (flash_cuda, flash_cpu)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("trees", [TREES, TREES * 20, [(3, []), (4, [0])]])
def test_a_row_is_one_call(emulation, trees):
    layout = layout_of(trees)
    inputs = tensors(layout)
    emulation.clear()
    with_gradients(flash_attention(*inputs, layout.to(CPU), 0.3, None, flash_cuda), inputs)
    assert emulation == ["forward torch.float64", "backward torch.float64"]


@pytest.mark.parametrize(
    ("architecture", "checkpointing"), [("llama", False), ("llama", True), ("mistral", False), ("gpt_oss", False)]
)
def test_a_model_is_exact_with_it(everywhere, architecture, checkpointing):
    """Trees are longer than the windows of mistral and gpt_oss, which also has sinks."""
    model = architecture_model(architecture)
    trees = random_trees(4, branches=3, longest=30)
    expected = plain_logps(model, trees)
    expected_gradients = gradients(model, expected)
    use_tree_attention(model)
    if checkpointing:
        enable_checkpointing(model)
    logps = Policy(model, "shared_prefix").train()(collate(trees, "shared_prefix").to(CPU)).tokens.logps
    found = [logps, *gradients(model, logps)]
    for one, other in zip(found, [expected, *expected_gradients], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE * float(other.detach().abs().max()))
    calls, layers = len(everywhere), model.config.num_hidden_layers
    assert calls == layers * (3 if checkpointing else 2)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 1),
        ({"softcap": 30.0}, 0),
        ({"dropout": 0.5}, 0),
        ({"use_flash": False}, 0),
    ],
)
def test_what_the_kernel_cannot_do_goes_branch_by_branch(everywhere, options, calls):
    layout = layout_of([(4, [2, 5])]).to(CPU)
    output, _ = tree_attention(torch.nn.Identity(), *tensors(layout), None, truing_layout=layout, **options)
    assert output.isfinite().all()
    assert len(everywhere) == calls


@pytest.mark.parametrize(
    ("device", "dtype", "size", "moved", "kernel"),
    [
        ("cuda", torch.bfloat16, 64, True, flash_cuda),
        ("cuda", torch.float16, 256, True, flash_cuda),
        ("cuda", torch.bfloat16, 64, False, None),
        ("cuda", torch.float32, 64, True, None),
        ("cuda", torch.bfloat16, 12, True, None),
        ("cuda", torch.bfloat16, 264, True, None),
        ("cpu", torch.bfloat16, 12, True, flash_cpu),
        ("cpu", torch.float32, 64, False, flash_cpu),
        ("meta", torch.bfloat16, 64, True, None),
    ],
)
def test_which_kernel_takes_what(device, dtype, size, moved, kernel):
    layout = layout_of(TREES)
    layout = layout.to(CPU) if moved else layout
    with FakeTensorMode():
        query = torch.empty(1, 4, sum(layout.sizes), size, dtype=dtype, device=device)
        assert flash_kernel(query, query, query, layout) is kernel
        assert flash_kernel(query, query, query, layout, window=3) is (None if kernel is flash_cpu else kernel)
        assert flash_kernel(query, query, torch.empty(1, 4, sum(layout.sizes), 8, dtype=dtype, device=device), layout) is None


def test_shapes_are_those_that_pytorch_declares():
    """With PyTorch's own fake tensors, which take shapes from its registrations, and refuse to be read by the host."""
    with FakeTensorMode():
        layout = layout_of(TREES).to(CPU)
        query, key, value = tensors(layout, kv_heads=2, dtype=torch.bfloat16)
        output = flash_attention(query, key, value, layout, 0.3, torch.zeros(HEADS, requires_grad=True), flash_cuda)
        grads = torch.autograd.grad(output.sum(), (query, key, value))
        assert output.shape == (1, sum(layout.sizes), HEADS, SIZE) and output.dtype == torch.bfloat16
        assert [grad.shape for grad in grads] == [tensor.shape for tensor in (query, key, value)]
        segments = layout.segments
        lse = torch.ops.aten._flash_attention_forward(
            *(torch.empty(count, heads, SIZE, dtype=torch.bfloat16) for count, heads in ((21, HEADS), (37, 2), (37, 2))),
            *(segments.query_offsets, segments.key_offsets, 5, 8, 0.0, True, False),
        )[1]
        assert lse.shape == (HEADS, 21) and lse.dtype == torch.float32
        with pytest.raises(DataDependentOutputException):
            lse.sum().item()


def test_segments():
    """Prompts 0-3, 9, 10-15, 19-21 of a row, of which the second and the last have no branch with inputs."""
    layout = layout_of(TREES)
    found = layout.to(CPU).segments
    assert found.query_offsets.tolist() == [0, 3, 5, 9, 10, 15, 16, 19, 21]
    assert found.key_offsets.tolist() == [0, 3, 8, 15, 16, 21, 27, 35, 37]
    assert (found.most_queries, found.most_keys) == (5, 8)
    prompt, third = [*range(3)], [*range(10, 15)]
    after_prompts = [*prompt, 3, 4, *prompt, *range(5, 9)], [*third, 15, *third, 16, 17, 18]
    assert found.keys.tolist() == [*prompt, *after_prompts[0], 9, *third, *after_prompts[1], 19, 20]
    assert layout.to(CPU) == layout


def test_a_prompt_and_its_only_branch_are_one_part():
    layout = layout_of([(3, [2]), (4, []), (2, [0, 1])])
    assert [(part.queries, part.keys) for part in layout.parts() if part.own] == [
        (span, span) for span in (slice(0, 5), slice(5, 9), slice(9, 11), slice(11, 12))
    ]
    assert [(part.queries, part.keys) for part in layout.parts() if not part.own] == [(slice(11, 12), slice(9, 11))]
    single = layout_of([(3, [2]), (4, [1])]).to(CPU).segments
    assert single.keys is None and single.key_offsets.tolist() == single.query_offsets.tolist() == [0, 5, 10]
