"""The policy while it generates: lent by the run, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Call modules that are compiled as if they were not; of this model alone, where PyTorch's own way is for a whole process."""
    programs = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl is not None}
    try:
        for module in programs:
            module._compiled_call_impl = None
        yield
    finally:
        for module, program in programs.items():
            module._compiled_call_impl = program


@contextmanager
def lent(model: PreTrainedModel, attention: str, generation: GenerationConfig | None = None) -> Iterator[None]:
    """Generate with a model: without gradient, dropout and recomputation, with the attention that is named.

    Its generation configuration is the one given; None is an empty one, for that of the model could hold penalties, and the
    log-probabilities would not be the policy's.

    Afterwards every module is in training or evaluation as before, and the attention and the generation configuration are what they
    were. Not to be held while a generator yields: what runs there would find the model so.
    """
    training = [module for module in model.modules() if module.training]
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    own = model.generation_config
    try:
        for module in training:
            module.training = False
        for config, _ in before:
            config._attn_implementation = attention
        model.generation_config = generation or GenerationConfig()
        with torch.no_grad(), uncompiled(model):  # a cache grows with every token, for which layers would be compiled again
            yield
    finally:
        model.generation_config = own
        for config, name in before:
            config._attn_implementation = name
        for module in training:
            module.training = True
