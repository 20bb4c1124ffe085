"""The token budget: measured on the loaded model, and bounded by free memory."""

from __future__ import annotations

import pytest
import torch

from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.model import memory
from truing.model.loading import enable_checkpointing
from truing.model.memory import bytes_per_token, free_bytes, token_budget
from truing.model.policy import Policy
from truing.testing import tiny_model

BATCH = collate(random_trees(4, longest=30), "padded")


def policy(layers=2):
    return Policy(tiny_model(layers=layers), "padded")


def test_each_layer_keeps_as_much_as_another():
    two, four, six = (bytes_per_token(policy(layers), BATCH) for layers in (2, 4, 6))
    assert four - two == pytest.approx(six - four, rel=0.02)
    assert four - two > 2 * 4 * 32 * 4  # at the least its inputs of attention and MLP, 32 numbers of 4 bytes each


def test_checkpointing_keeps_less():
    checkpointed = policy(8)
    enable_checkpointing(checkpointed.causal_lm)
    assert bytes_per_token(checkpointed, BATCH) < bytes_per_token(policy(8), BATCH) / 3


def test_measuring_leaves_the_mode_as_it_was():
    trained = policy().train()
    bytes_per_token(trained, BATCH)
    assert trained.training and trained.causal_lm.training


@pytest.mark.parametrize(
    ("free", "whole_steps", "budget"), [(10**12, False, 4096), (10**12, True, 65_536), (0, False, 512), (0, True, 512)]
)
def test_the_budget_has_bounds(monkeypatch, free, whole_steps, budget):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert token_budget(policy(), BATCH, whole_steps=whole_steps) == budget


def test_the_budget_is_what_fits(monkeypatch):
    """Room for 1,500 tokens beside three times the weights and the kept logits: the power of two below is 1,024."""
    model = policy()
    trained = sum(weight.numel() * 4 for weight in model.parameters())
    room = 1500 * bytes_per_token(model, BATCH) + 3 * trained + memory.kept_bytes(torch.device("cpu"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: room / memory.SHARE)
    assert token_budget(model, BATCH) == 1024


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = free_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert free_bytes(torch.device("cpu")) == 500_000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 500_000
