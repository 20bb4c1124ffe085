"""Compiled layers: the same numbers, one program for rows of every length; what cannot be compiled says so."""

from __future__ import annotations

import re

import attrs
import pytest
import torch
from torch._dynamo.utils import counters

from tests.core.architectures import architecture_model
from tests.core.plain import gradients, plain_logps
from tests.core.trees import random_trees
from tests.core.varlen import emulated
from truing.config.classes import LoraConfig
from truing.data.batch import collate
from truing.data.tree import MISMATCHED
from truing.errors import ModelError
from truing.loss import Needs
from truing.model import flash, flash_cuda
from truing.model.attention import own_attention, use_tree_attention
from truing.model.compiled import compile_layers
from truing.model.lent import lent, uncompiled
from truing.model.loading import add_adapter, enable_checkpointing
from truing.model.policy import Policy
from truing.model.probe import why_not_compiled
from truing.testing import tiny_model

CPU = torch.device("cpu")
LENGTHS = [(3, 12), (1, 40), (5, 25)]
"""Of trees, and of the longest part of one."""


@pytest.fixture(autouse=True)
def fresh():
    """What was compiled for another test's models would be counted here."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def on_cuda(monkeypatch):
    """The kernel for CUDA devices, over its emulation."""
    monkeypatch.setattr(flash_cuda, "supports", lambda query, key, value, layout, window: layout.segments is not None)
    monkeypatch.setattr(flash, "KERNELS", (flash_cuda,))
    with emulated() as calls:
        yield calls


def policy_of(architecture="llama", *, checkpointing=False):
    model = architecture_model(architecture)
    use_tree_attention(model)
    if checkpointing:
        enable_checkpointing(model)
    policy = Policy(model, "shared_prefix").train(checkpointing)
    compile_layers(policy, "aot_eager")
    return policy


def programs():
    return counters["stats"]["unique_graphs"]


def batches(**options):
    return [collate(random_trees(count, longest=longest, **options), "shared_prefix").to(CPU) for count, longest in LENGTHS]


def numbers(policy, batch):
    output = policy(batch)
    return [output.logps, *gradients(policy.causal_lm, output.logps)]


def require_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.detach().abs().max()))


def plainly(policy, call, *arguments):
    with uncompiled(policy.causal_lm):
        return call(*arguments)


@pytest.mark.parametrize(
    ("architecture", "checkpointing", "kinds"),
    [("llama", False, 1), ("llama", True, 1), ("mistral", False, 1), ("gemma3_text", False, 2)],
)
def test_one_program_serves_all_rows(on_cuda, architecture, checkpointing, kinds):
    """Forward and backward, one for each kind of layer; trees are longer than mistral's windows and some of gemma3's."""
    policy = policy_of(architecture, checkpointing=checkpointing)
    for batch in batches(branches=3):
        require_near(numbers(policy, batch), plainly(policy, numbers, policy, batch))
    assert programs() == kinds
    assert not counters["graph_break"]
    assert any(call.startswith("backward") for call in on_cuda)


@pytest.mark.parametrize("branches", [1, 3])
def test_numbers_are_those_of_plain_rows(on_cuda, branches):
    """Where every prompt has one branch, its keys lie as they are, which is another program."""
    policy = policy_of()
    trees = random_trees(3, branches=branches, longest=30)
    found = numbers(policy, collate(trees, "shared_prefix").to(CPU))
    torch._dynamo.reset()
    plain = architecture_model("llama")
    logps = plain_logps(plain, trees)
    require_near(found, [logps, *gradients(plain, logps)])


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss", "gpt2", "deepseek_v3"])
def test_attention_that_is_not_compiled_is_called_between_programs(on_cuda, architecture):
    """Soft caps, sinks, and values of another size than keys; and a model that is built otherwise."""
    policy = policy_of(architecture)
    for batch in batches():
        require_near(numbers(policy, batch), plainly(policy, numbers, policy, batch))


def test_the_kernel_for_cpus_is_called_between_programs():
    policy = policy_of()
    for batch in batches():
        require_near(numbers(policy, batch), plainly(policy, numbers, policy, batch))


def test_mismatched_branches(on_cuda):
    """Whose keys the first row keeps, as it cannot inside of a program."""
    policy = policy_of()
    labelled = [
        attrs.evolve(tree, branches=(tree.branches[0], attrs.evolve(tree.branches[1], role=MISMATCHED))) for tree in random_trees(3)
    ]
    batch = collate(labelled, "shared_prefix").to(CPU)
    found, expected = policy(batch, Needs.MISMATCHED_LOGPS).logps, plainly(policy, policy, batch, Needs.MISMATCHED_LOGPS).logps
    require_near([found], [expected])


def test_an_adapter_is_turned_off_and_on(on_cuda):
    model = architecture_model("llama")
    use_tree_attention(model)
    policy = Policy(add_adapter(model, LoraConfig(r=2)), "shared_prefix").train()
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    compile_layers(policy, "aot_eager")
    for batch in batches():
        on, off = (policy(batch, adapter=adapter).logps for adapter in (True, False))
        with uncompiled(policy.causal_lm):
            plain_on, plain_off = (policy(batch, adapter=adapter).logps for adapter in (True, False))
        require_near([on, off], [plain_on, plain_off])
        assert not torch.allclose(on, off)


def test_a_model_generates_uncompiled():
    """For every token more it would have a cache of another size."""
    policy = policy_of()
    with lent(policy.causal_lm, own_attention(policy.causal_lm)):
        policy.causal_lm.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)
    assert programs() == 0


def wrong(module, inputs):
    return lambda *given: [output * 1.5 if isinstance(output, torch.Tensor) else output for output in module(*given)]


def missing(module, inputs):
    raise RuntimeError("Cannot find a working triton installation.")


@pytest.mark.parametrize(
    ("backend", "why"), [(wrong, "its log-probabilities differ from plain ones"), (missing, "its code fails .*working triton")]
)
def test_a_compiler_that_fails_is_found_out(backend, why):
    model = tiny_model()
    use_tree_attention(model)
    policy = Policy(model, "shared_prefix").eval()
    trees = random_trees(2)
    compile_layers(policy, backend)
    problem = why_not_compiled(policy, trees)
    assert problem is not None and re.search(why, problem), problem
    assert policy.layout == "shared_prefix"


def test_what_cannot_be_compiled_says_why(monkeypatch):
    policy = Policy(tiny_model(), "cached")
    with pytest.raises(
        ModelError, match=r"trainer.torch_compile: LlamaForCausalLM cannot be compiled, for its prompts .*set it to false"
    ):
        compile_layers(policy)
    policy = Policy(tiny_model(), "shared_prefix")
    monkeypatch.setattr(policy.causal_lm, "get_decoder", lambda: torch.nn.Linear(1, 1))
    with pytest.raises(ModelError, match="it has no list of layers"):
        compile_layers(policy)
