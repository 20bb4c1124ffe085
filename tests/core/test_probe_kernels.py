"""A flash kernel that is wrong, or not there, costs a run its speed and nothing else."""

from __future__ import annotations

import re

import pytest
import torch

from tests.core.plain import plain_logps
from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.errors import ModelError
from truing.model import flash_cpu
from truing.model.attention import NAME, PLAIN_NAME, use_own_attention
from truing.model.policy import Policy
from truing.model.probe import choose_forward
from truing.testing import tiny_model

TREES = random_trees(4, longest=30)
SLOWER = (
    "every prompt computed once (probed: equal to padded rows); a call of attention for every branch, because with flash kernels"
)
RIGHT = {name: getattr(flash_cpu, name) for name in ("forward", "backward")}


def wrong_lse(*arguments):
    output, lse = RIGHT["forward"](*arguments)
    return output, lse + 0.5 * (not arguments[3].own)


def wrong_gradient(*arguments):
    query, key, value = RIGHT["backward"](*arguments)
    return query, key, value * 1.5


def missing(*arguments):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def in_bf16(broken):
    return lambda *arguments: (broken if arguments[0].dtype == torch.bfloat16 else RIGHT["forward"])(*arguments)


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "broken", "why"),
    [
        ("forward", wrong_lse, r"its log-probabilities differ from plain ones by .* \(allowed: 0\.001\)"),
        ("backward", wrong_gradient, r"its log-probabilities differ from plain ones by \S+e-0[5-9] nats and its gradients by .*"),
        ("forward", missing, r"its code fails \(RuntimeError: FlashAttention only supports Ampere GPUs or newer\)"),
    ],
    ids=["wrong", "wrong backward", "missing"],
)
def test_a_kernel_that_fails_is_not_used(monkeypatch, name, broken, why):
    monkeypatch.setattr(flash_cpu, name, broken)
    model = tiny_model()
    policy = Policy(model, "padded")
    choice = choose_forward(policy, TREES, "shared_prefix")
    assert choice.forward == policy.layout == "shared_prefix"
    assert re.fullmatch(f"{re.escape(SLOWER)} {why}", choice.reason), choice.reason
    assert model.config._attn_implementation == PLAIN_NAME
    torch.testing.assert_close(policy(collate(TREES, "shared_prefix")).tokens.logps, plain_logps(model, TREES), rtol=0, atol=2e-5)
    use_own_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_kernel_is_tried_in_mixed_precision_too(monkeypatch):
    monkeypatch.setattr(flash_cpu, "forward", in_bf16(wrong_lse))
    model = tiny_model()
    choice = choose_forward(Policy(model, "padded"), TREES, "auto", bf16)
    assert choice.reason.startswith(f"{SLOWER} its log-probabilities differ from plain ones by")
    assert choice.reason.endswith("(allowed: 0.15)")
    assert model.config._attn_implementation == PLAIN_NAME


@pytest.mark.parametrize("autocast", [None, bf16])
def test_a_kernel_that_is_right_is_used(autocast):
    model = tiny_model()
    choice = choose_forward(Policy(model, "padded"), TREES, "auto", autocast)
    assert choice.reason == "every prompt computed once (probed: equal to padded rows)"
    assert model.config._attn_implementation == NAME


def test_a_reference_goes_the_same_way(monkeypatch):
    monkeypatch.setattr(flash_cpu, "forward", missing)
    policy, other = Policy(tiny_model(), "padded"), Policy(tiny_model(), "padded")
    choose_forward(policy, TREES, "auto")
    other.adopt_forward(policy)
    assert other.causal_lm.config._attn_implementation == PLAIN_NAME
    assert other(collate(TREES, "shared_prefix")).tokens.logps.isfinite().all()


def test_what_is_wrong_without_flash_kernels_is_what_an_error_says(monkeypatch):
    monkeypatch.setattr(flash_cpu, "forward", missing)
    monkeypatch.setattr("truing.model.attention._attend", lambda query, *others: query * 0)
    with pytest.raises(ModelError, match="trainer.forward is shared_prefix, but its log-probabilities differ"):
        choose_forward(Policy(tiny_model(), "padded"), TREES, "shared_prefix")
