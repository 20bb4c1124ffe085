"""Compiles a model's layers: `torch.compile` makes few kernels of the many small ones that a device waits for the host to start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from truing.data.tree import PromptTree
from truing.errors import ModelError
from truing.model.policy import Policy
from truing.model.probe import Autocast, why_not_compiled

VARIANTS = 64
"""Most programs of one kind of layer: with and without gradient, dropout and adapter, for rows whose prompts have one branch each
and for others, for each kind of attention. PyTorch's 8 are too few, and it would go on uncompiled."""


def compile_models(policy: Policy, others: Iterable[Policy], trees: Sequence[PromptTree], autocast: Autocast = nullcontext) -> None:
    """Compile the layers of the policy and, where they can be, of other models. Raises ModelError where the policy's are not exact.

    It is compared with what it is uncompiled, log-probabilities and gradients, on `trees`.
    """
    compile_layers(policy)
    if problem := why_not_compiled(policy, trees, autocast):
        raise ModelError(f"trainer.torch_compile: compiled, {problem}; set it to false, or mend the compiler where it is at fault")
    for other in others:
        if other.layout != "cached":
            compile_layers(other)


def compile_layers(policy: Policy, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the decoder's layers, each by itself, so that one program serves all that are alike, for rows of any length.

    A program is made when it is first called. Raises ModelError where the decoder has no list of layers, or the policy computes in
    two passes over a cache, which grows from call to call.
    """
    layers = list(_layers(policy.causal_lm.get_decoder()))
    if not layers or policy.layout == "cached":
        why = "its prompts are computed in a pass of their own" if layers else "it has no list of layers"
        raise ModelError(f"trainer.torch_compile: {type(policy.causal_lm).__name__} cannot be compiled, for {why}; set it to false")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # on a GPU the host is what is waited for, and a program in Python takes it almost twice as long as one in C++
    options = {"cpp_wrapper": True} if backend == "inductor" and policy.causal_lm.device.type == "cuda" else None
    for layer in layers:
        layer.compile(dynamic=True, backend=backend, options=options)


def _layers(decoder: Any) -> Iterator[nn.Module]:
    """Yield the members of the decoder's lists of modules."""
    for child in decoder.children():
        if isinstance(child, nn.ModuleList):
            yield from child
