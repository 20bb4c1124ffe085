"""References that are models: copies, second adapters, and those that follow the policy."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.core.trees import random_trees
from truing.config import LoraConfig
from truing.data.batch import collate
from truing.model.loading import add_adapter
from truing.model.policy import Policy
from truing.model.reference import AdapterCopy, AdapterOff, Following, FrozenCopy
from truing.testing import tiny_model


@pytest.fixture
def batch():
    return collate(random_trees(3), "padded")


@pytest.fixture
def adapted():
    return Policy(add_adapter(tiny_model(), LoraConfig(r=2, target_modules=("q_proj", "v_proj"))), "padded").train()


def trained(policy):
    return {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}


def move(policy, by):
    with torch.no_grad():
        for weight in trained(policy).values():
            weight.add_(by)


def follow(policy, reference, alpha, every=1):
    return Following(reference=reference, sources=trained(policy), sync_steps=every, mixup_alpha=alpha)


def test_a_second_adapter_starts_as_the_policy_does_and_stays_when_that_moves(adapted, batch):
    reference = AdapterCopy(adapted)
    at_start = AdapterOff(adapted).token_logps(batch)
    assert torch.equal(reference.token_logps(batch), at_start)
    move(adapted, 0.1)
    assert torch.equal(reference.token_logps(batch), at_start)
    assert (adapted(batch).tokens.logps - at_start).abs().max() > 0.01


def test_a_second_adapter_gives_what_a_copy_of_the_whole_model_gives(adapted, batch):
    move(adapted, 0.1)
    reference, whole = AdapterCopy(adapted), FrozenCopy(copy.deepcopy(adapted))
    move(adapted, 0.1)
    for moving in (follow(adapted, reference, 0.3), follow(adapted, whole, 0.3)):
        moving.follow(1)
    assert torch.equal(reference.token_logps(batch), whole.token_logps(batch))


def test_a_second_adapter_leaves_the_policy_as_it_was(adapted, batch):
    reference = AdapterCopy(adapted)
    move(adapted, 0.1)
    before, names = adapted(batch).tokens.logps, list(trained(adapted))
    assert not reference.token_logps(batch).requires_grad
    assert torch.equal(adapted(batch).tokens.logps, before)
    assert list(trained(adapted)) == names and adapted.training


def test_no_second_base_model_is_held(adapted):
    own = {weight.data_ptr() for weight in adapted.parameters()}
    elsewhere = {name for name, weight in AdapterCopy(adapted).weights if weight.numel() and weight.data_ptr() not in own}
    assert trained(adapted).keys() <= elsewhere
    assert not [name for name in elsewhere - trained(adapted).keys() if "inv_freq" not in name]


def test_a_reference_moves_by_its_share_at_multiples_only():
    """Policy 3, reference 1, alpha 1/4: 1.5; then the policy is at 5: 1/4 x 5 + 3/4 x 1.5 = 2.375."""
    policy = Policy(tiny_model(), "padded")
    reference = FrozenCopy(copy.deepcopy(policy))
    norm = "model.model.norm.weight"
    weights, moved = dict(policy.named_parameters()), dict(reference.weights)[norm]
    with torch.no_grad():
        weights[norm].fill_(3.0)
        moved.fill_(1.0)
    moving = follow(policy, reference, 0.25, every=4)
    seen = []
    for step in range(1, 9):
        moving.follow(step)
        seen.append(float(moved[0]))
        if step == 4:
            with torch.no_grad():
                weights[norm].fill_(5.0)
    assert seen == [1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 2.375]
    assert weights[norm][0].item() == 5.0


def test_with_alpha_one_the_reference_becomes_the_policy_to_the_last_bit(adapted, batch):
    moving = follow(adapted, AdapterCopy(adapted), 1.0)
    move(adapted, 0.37)
    moving.follow(1)
    assert all(torch.equal(weight, moving.tensors()[name]) for name, weight in trained(adapted).items())
    assert torch.equal(moving.token_logps(batch), adapted.eval()(batch).tokens.logps)


def test_equal_weights_stay_equal():
    policy = Policy(tiny_model(), "padded")
    reference = FrozenCopy(copy.deepcopy(policy))
    follow(policy, reference, 0.3).follow(1)
    assert all(torch.equal(weight, dict(policy.named_parameters())[name]) for name, weight in reference.policy.named_parameters())


def test_weights_that_were_kept_are_taken_over(adapted):
    moving = follow(adapted, AdapterCopy(adapted), 0.5)
    kept = {name: weight.clone() for name, weight in moving.tensors().items()}
    move(adapted, 1.0)
    moving.follow(1)
    assert not all(torch.equal(weight, kept[name]) for name, weight in moving.tensors().items())
    moving.load(kept)
    assert all(torch.equal(weight, kept[name]) for name, weight in moving.tensors().items())


def test_a_model_with_another_forward_lays_batches_out_anew():
    trees = random_trees(3)
    reference = FrozenCopy(Policy(tiny_model(architecture="gpt2"), "padded"))
    expected = reference.token_logps(collate(trees, "padded"))
    assert torch.equal(reference.token_logps(collate(trees, "shared_prefix")), expected)
