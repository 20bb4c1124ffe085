"""The token budget: measured on the loaded model, and bounded by free memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.core.trees import random_trees
from truing.model import memory
from truing.model.loading import enable_checkpointing
from truing.model.memory import activation_bytes, free_bytes, token_budget
from truing.model.policy import Policy
from truing.testing import tiny_model

TREE = random_trees(1, longest=60)[0]


def policy(layers=2):
    return Policy(tiny_model(layers=layers), "padded")


def bytes_per_token(model):
    return activation_bytes(model, [TREE])[0]


def test_each_layer_keeps_as_much_as_another():
    two, four, six = (bytes_per_token(policy(layers)) for layers in (2, 4, 6))
    assert four - two == pytest.approx(six - four, rel=0.02)
    assert four - two > 2 * 4 * 32 * 4  # at the least its inputs of attention and MLP, 32 numbers of 4 bytes each


def test_checkpointing_keeps_less():
    checkpointed = policy(8)
    enable_checkpointing(checkpointed.causal_lm)
    assert bytes_per_token(checkpointed) < bytes_per_token(policy(8)) / 3


def test_weights_that_autocast_has_cast_are_not_of_a_token():
    """Two bytes for each number of a matrix; activations are half of what they are in fp32, and some."""
    model = policy()
    per_token, fixed = activation_bytes(model, [TREE], autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    layers = model.causal_lm.get_decoder().layers.named_parameters()
    assert fixed == sum(2 * weight.numel() for _, weight in layers if weight.dim() == 2)
    assert 0.4 < per_token / bytes_per_token(model) < 0.9


def test_measuring_leaves_the_mode_as_it_was():
    trained = policy().train()
    bytes_per_token(trained)
    assert trained.training and trained.causal_lm.training


@pytest.mark.parametrize(
    ("free", "whole_steps", "budget"), [(10**12, False, 4096), (10**12, True, 65_536), (0, False, 512), (0, True, 512)]
)
def test_the_budget_has_bounds(monkeypatch, free, whole_steps, budget):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert token_budget(policy(), [TREE], whole_steps=whole_steps) == budget


@pytest.mark.parametrize(("tokens", "budget"), [(1500, 1024), (1600, 1536), (2047, 1536), (2100, 2048)])
def test_the_budget_is_what_fits(monkeypatch, tokens, budget):
    """Beside three times the weights and the kept logits."""
    model = policy()
    trained = sum(weight.numel() * 4 for weight in model.parameters())
    per_token, fixed = activation_bytes(model, [TREE])
    room = tokens * per_token + fixed + 3 * trained + memory.kept_bytes(torch.device("cpu"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: room / memory.SHARE)
    assert token_budget(model, [TREE]) == budget


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = free_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert free_bytes(torch.device("cpu")) == 500_000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 500_000


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == 250


def test_rows_that_keep_more_for_a_token_the_longer_they_are_count_as_the_longest():
    """Attention that is written out does, whose scores are kept."""
    model = Policy(tiny_model(layers=2, attn_implementation="eager"), "padded")
    short, long = (random_trees(1, longest=longest, seed=1)[0] for longest in (12, 200))
    of_short, of_long = (activation_bytes(model, [tree])[0] for tree in (short, long))
    assert of_long > 1.5 * of_short
    assert activation_bytes(model, [short, long])[0] == pytest.approx(of_long, rel=0.1)
