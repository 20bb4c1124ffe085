"""Reference log-probabilities of a dataset: taken once, found again, and never those of anything else."""

from __future__ import annotations

import attrs
import pytest
import torch

from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.data.dataset import TreeDataset
from truing.loss import Layout
from truing.model.policy import Policy
from truing.model.precomputed import Precomputed, reference_file
from truing.model.reference import FrozenCopy
from truing.testing import tiny_model


def dataset(trees):
    made = TreeDataset(Layout.PAIRED)
    for tree in trees:
        made.append(tree)
    return made


@pytest.fixture
def trees():
    return dataset(random_trees(7))


@pytest.fixture
def reference():
    return FrozenCopy(Policy(tiny_model(), "padded"))


def test_each_batch_gets_its_own(reference, trees):
    taken = Precomputed.of(reference, trees, reference.policy, budget=60)
    batch = collate([trees[5], trees[0], trees[3]], "padded")
    torch.testing.assert_close(taken.token_logps(batch), reference.token_logps(batch))


def test_a_file_gives_back_what_was_written(reference, trees, tmp_path):
    taken = Precomputed.of(reference, trees, reference.policy, budget=60)
    taken.write(tmp_path / "new" / "kept.safetensors")
    found = Precomputed.read(tmp_path / "new" / "kept.safetensors", len(trees))
    assert torch.equal(found.logps, taken.logps)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept.safetensors"]


def test_a_damaged_or_foreign_file_is_not_used(reference, trees, tmp_path):
    path = tmp_path / "kept.safetensors"
    assert Precomputed.read(path, len(trees)) is None
    Precomputed.of(reference, trees, reference.policy, budget=60).write(path)
    assert Precomputed.read(path, len(trees) + 1) is None
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"no safetensors"):
        path.write_bytes(damaged)
        assert Precomputed.read(path, len(trees)) is None


def test_the_name_depends_on_all_that_the_numbers_depend_on(reference, trees):
    def name(reference=reference, trees=trees, precision="no"):
        return reference_file(reference, reference.policy, trees, precision)

    assert name() == name(FrozenCopy(Policy(tiny_model(), "shared_prefix")))
    changed = FrozenCopy(Policy(tiny_model(), "padded"))
    with torch.no_grad():
        changed.policy.causal_lm.lm_head.weight[7, 7] += 1e-3
    first = trees[0]
    other_mask = attrs.evolve(first.branches[0], loss_mask=(True, *(False,) * (len(first.branches[0].token_ids) - 1)))
    other_trees = dataset([attrs.evolve(first, branches=(other_mask, first.branches[1])), *random_trees(7)[1:]])
    theta = FrozenCopy(Policy(tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 500.0}), "padded"))
    buffered = FrozenCopy(Policy(tiny_model(), "padded"))
    buffered.policy.causal_lm.model.rotary_emb.inv_freq *= 2
    assert name(buffered) != name()
    names = {name(), name(changed), name(theta), name(trees=other_trees), name(precision="bf16")}
    assert len(names) == 5
