"""The policy is given back as it was: after every completion, after all of them, and after an abandoned call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from truing.data.batch import collate
from truing.data.tree import Branch, PromptTree
from truing.model.attention import NAME, use_tree_attention
from truing.model.loading import enable_checkpointing
from truing.model.policy import Policy
from truing.testing import tiny_model
from truing_transformers.shared import SharedPrompts


def training_model(architecture="llama", **config):
    """A model as a run trains it: core's attention, gradient checkpointing, one module in evaluation mode."""
    model = tiny_model(architecture=architecture, **config)
    if model._supports_attention_backend:
        use_tree_attention(model)
    enable_checkpointing(model)
    model.train()
    model.get_input_embeddings().eval()
    return model


def state(model):
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: getattr(module, "gradient_checkpointing", None) for name, module in model.named_modules()},
        model.config._attn_implementation,
        model.generation_config,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def generators():
    return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_the_policy_is_untouched_between_and_after_completions(opened, request_for, architecture):
    model = training_model(architecture)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before, random = state(model), generators()
    live = opened(model)
    assert state(model) == before
    requests = [request_for(range(4, 4 + length), 1, 2, 3, id=str(length), max_completion_length=5) for length in (3, 9)]
    count = 0
    for _ in live.generate(requests):
        assert state(model) == before
        count += 1
    assert count == 6 and state(model) == before and generators() == random
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    abandoned = live.generate(requests)
    next(abandoned)
    abandoned.close()
    assert state(model) == before


def test_the_policy_is_given_back_when_generation_fails(opened, request_for, monkeypatch):
    model = training_model()
    before, live = state(model), opened(model)
    monkeypatch.setattr(SharedPrompts, "_step", lambda self, batches: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(live.generate([request_for([5, 6], 1)]))
    assert state(model) == before


def test_dropout_is_off(opened, request_for):
    """Of a model with dropout everywhere, in training, the completions are those of the model in evaluation."""
    model = tiny_model(architecture="gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    requests = [request_for([5, 6, 7], 1, 2, max_completion_length=8)]
    live = opened(model)
    quiet = [(one.token_ids, one.token_logps) for one in live.generate(requests)]
    model.train()
    assert [(one.token_ids, one.token_logps) for one in live.generate(requests)] == quiet


def test_gradients_are_the_same_before_and_after(opened, request_for):
    """A step of training around a rollout: the same loss and gradients, bit by bit."""
    model = training_model()
    policy = Policy(model, "shared_prefix")
    branches = tuple(Branch(token_ids=ids, loss_mask=(True,) * len(ids), role="completion") for ids in ((9, 8), (7, 6, 5)))
    batch = collate([PromptTree(prompt_ids=(5, 6, 7), branches=branches, sample_id=0)], "shared_prefix")

    def gradients():
        policy.zero_grad()
        policy(batch).tokens.logps.sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    before = gradients()
    list(opened(model).generate([request_for([5, 6, 7], 1, 2, max_completion_length=6)]))
    after = gradients()
    assert model.config._attn_implementation == NAME
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_adapter_is_on(opened, request_for, teacher_forced):
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    model.train()
    completions = list(opened(model).generate([request_for([5, 6, 7], 1, 2, max_completion_length=8)]))
    assert model.training
    model.eval()
    for one in completions:
        logps = torch.tensor(one.token_logps)
        assert torch.allclose(logps, teacher_forced(model, one), atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(logps, teacher_forced(model, one), atol=1e-2)


def test_penalties_of_the_generation_configuration_are_not_applied(opened, request_for, teacher_forced):
    """In the library's own generate() they would be, and the log-probabilities would not be the policy's."""
    model = tiny_model(architecture="bloom")
    model.generation_config.repetition_penalty = 3.0
    [one] = opened(model).generate([request_for([5, 6, 7], 1, max_completion_length=12)])
    assert model.generation_config.repetition_penalty == 3.0
    assert torch.allclose(torch.tensor(one.token_logps), teacher_forced(model, one), atol=1e-5)
