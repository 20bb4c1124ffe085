from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from truing.loss import Layout, LossInputs, Needs
from truing.testing import fake_inputs, take_branches, take_trees
from truing.testing.inputs import NEED_FIELDS

OPTIONAL = sorted({field for fields in NEED_FIELDS.values() for field in fields})


def given(inputs):
    return {field for field in OPTIONAL if getattr(inputs, field) is not None}


def test_every_need_has_its_fields():
    assert set(NEED_FIELDS) == set(Needs)
    assert set(OPTIONAL) < {field.name for field in attrs.fields(LossInputs)}


@pytest.mark.parametrize("layout", Layout)
def test_fields_are_those_that_are_needed(layout):
    assert given(fake_inputs(layout)) == set()
    assert given(fake_inputs(layout, needs=Needs.REFERENCE_LOGPS | Needs.VALUES)) == {"reference_token_logps", "token_values"}
    assert given(fake_inputs(layout, needs=~Needs.NO_LOGPS)) == set(OPTIONAL)


def test_without_log_probabilities_there_is_nothing_to_read_in_their_place():
    inputs = fake_inputs(Layout.PAIRED, needs=Needs.SCORES | Needs.NO_LOGPS)
    assert inputs.token_logps.isnan().all() and len(inputs.token_logps) == inputs.lengths.sum()
    assert torch.equal(inputs.scores, fake_inputs(Layout.PAIRED, needs=Needs.SCORES).scores)


@pytest.mark.parametrize("layout", Layout)
def test_shapes_agree(layout):
    inputs = fake_inputs(layout, needs=~Needs.NO_LOGPS, num_rewards=3)
    tokens, branches = len(inputs.sequence_ids), len(inputs.lengths)
    assert inputs.lengths.tolist() == inputs.sequence_ids.bincount().tolist()
    assert tokens == inputs.lengths.sum() and len(inputs.tree_ids) == branches
    for field in (
        "token_logps",
        "reference_token_logps",
        "behavior_token_logps",
        "proximal_token_logps",
        "token_entropy",
        "token_values",
    ):
        assert getattr(inputs, field).shape == (tokens,)
    assert inputs.rewards.shape == (branches, 3) and inputs.scores.shape == (branches,)
    assert len(inputs.prompt_token_logps) == len(inputs.prompt_tree_ids)
    assert (inputs.labels is not None, inputs.ranks is not None, inputs.margins is not None) == (
        layout is Layout.LABELED,
        layout is Layout.RANKED,
        layout is Layout.PAIRED,
    )
    assert (inputs.token_logps < 0).all() and inputs.token_logps.dtype is torch.float64


def test_lengths_branches_and_dtype_are_as_asked():
    inputs = fake_inputs(Layout.ROLLOUT, trees=2, branches=2, lengths=[1, 0, 3, 2], dtype=torch.float32)
    assert inputs.lengths.tolist() == [1, 0, 3, 2]
    assert inputs.tree_ids.tolist() == [0, 0, 1, 1]
    assert inputs.sequence_ids.tolist() == [0, 2, 2, 2, 3, 3]
    assert inputs.token_logps.dtype is torch.float32
    with pytest.raises(AssertionError, match="3 lengths for 2 branches"):
        fake_inputs(Layout.PAIRED, trees=1, lengths=[1, 2, 3])


def test_seeds_repeat_and_differ():
    one, same, other = (fake_inputs(Layout.PAIRED, seed=seed, lengths=[2, 3, 2, 3, 2, 3]) for seed in (0, 0, 1))
    assert torch.equal(one.token_logps, same.token_logps)
    assert not torch.equal(one.token_logps, other.token_logps)
    more = fake_inputs(Layout.PAIRED, needs=~Needs.NO_LOGPS, lengths=[2, 3, 2, 3, 2, 3])
    assert torch.equal(one.token_logps, more.token_logps)


def test_trees_taken_keep_their_branches_and_are_numbered_anew():
    whole = attrs.evolve(
        fake_inputs(Layout.PAIRED, lengths=[2, 1, 3, 2, 1, 4], needs=~Needs.NO_LOGPS),
        columns={"c": torch.arange(13)},
        advantages=torch.arange(6.0),
        state={"kept": 1},
    )
    part = take_trees(whole, [2, 0])
    assert part.lengths.tolist() == [1, 4, 2, 1]
    assert part.tree_ids.tolist() == [0, 0, 1, 1]
    assert part.sequence_ids.tolist() == [0, 1, 1, 1, 1, 2, 2, 3]
    assert part.columns["c"].tolist() == [8, 9, 10, 11, 12, 0, 1, 2]
    assert part.advantages.tolist() == [4, 5, 0, 1]
    assert torch.equal(part.logps, whole.logps[[4, 5, 0, 1]])
    assert torch.equal(part.rewards, whole.rewards[[4, 5, 0, 1]])
    assert torch.equal(part.prompt_token_logps[part.prompt_tree_ids == 0], whole.prompt_token_logps[whole.prompt_tree_ids == 2])
    assert torch.equal(
        part.mismatched_token_logps[part.mismatched_sequence_ids == 1],
        whole.mismatched_token_logps[whole.mismatched_sequence_ids == 5],
    )
    assert part.state == {"kept": 1}


def test_all_trees_in_order_are_the_batch_itself():
    whole = fake_inputs(Layout.RANKED, needs=~Needs.NO_LOGPS)
    same = take_trees(whole, [0, 1, 2])
    for field in attrs.fields(LossInputs):
        value = getattr(whole, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(same, field.name)), field.name


def test_branches_may_be_paired_anew_and_twice():
    rollouts = fake_inputs(Layout.ROLLOUT, trees=2)
    pairs = take_branches(rollouts, [3, 0, 3, 1, 6, 5], Layout.PAIRED)
    assert pairs.layout is Layout.PAIRED
    assert pairs.tree_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert torch.equal(pairs.chosen.logps, rollouts.logps[[3, 3, 6]])
    assert torch.equal(pairs.rejected.logps, rollouts.logps[[0, 1, 5]])
