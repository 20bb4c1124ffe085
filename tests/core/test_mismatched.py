"""Mismatched completions: who is whose partner, what is cut, and that a loss finds them where they belong."""

from __future__ import annotations

from collections import Counter

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.architectures import SHARED_PREFIX
from tests.core.plain import plain_logps
from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.data.dataset import TreeDataset
from truing.data.mismatched import Mismatched, choose_partners, with_mismatched
from truing.data.report import DataReport
from truing.data.tree import MISMATCHED, Branch, PromptTree
from truing.errors import DataError
from truing.loss import Layout, Needs
from truing.model.attention import use_tree_attention
from truing.model.loading import enable_checkpointing
from truing.model.policy import Policy, loss_inputs
from truing.model.precomputed import Precomputed
from truing.model.reference import FrozenCopy
from truing.reduce import StepCounts
from truing.testing import tiny_model

LAYOUTS = ("shared_prefix", "cached", "padded")


def labelled(trees):
    """Trees of one branch, with a label each."""
    made = TreeDataset(Layout.LABELED)
    for index, tree in enumerate(trees):
        made.append(attrs.evolve(tree, branches=(attrs.evolve(tree.branches[0], role="completion", label=index % 3 != 0),)))
    return made


def some(count=7, **options):
    return Mismatched(labelled(random_trees(count, branches=1)), seed=0, **{"max_length": None, **options})


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 5))
def test_a_partner_has_another_prompt_and_depends_on_the_seed_alone(prompts, seed):
    prompts = np.array(prompts)
    if len(set(prompts.tolist())) == 1:
        with pytest.raises(DataError, match="have the same prompt, .* give data with two prompts or more"):
            choose_partners(prompts, seed)
        return
    partners = choose_partners(prompts, seed)
    assert (prompts[partners] != prompts).all()
    assert (choose_partners(prompts, seed) == partners).all()


def test_with_prompts_that_all_differ_every_completion_is_used_once():
    assert Counter(choose_partners(np.arange(1000), 0).tolist()) == Counter(range(1000))
    assert (choose_partners(np.arange(1000), 0) != choose_partners(np.arange(1000), 1)).mean() > 0.9


def test_a_sample_alone_has_no_partner():
    with pytest.raises(DataError, match=r"all samples \(1\) have the same prompt"):
        choose_partners(np.zeros(1, dtype=np.int64), 0)


def test_a_tree_gets_its_partners_completion_all_of_it_counted():
    trees = labelled(random_trees(9, branches=1))
    found = Mismatched(trees, seed=3, max_length=None)
    completions = {tree.branches[0].token_ids: tree.prompt_ids for tree in (trees[index] for index in range(9))}
    for index in range(9):
        tree, (own, other) = found[index], found[index].branches
        assert (own,) == trees[index].branches and tree.prompt_ids == trees[index].prompt_ids and tree.sample_id == index
        assert completions[other.token_ids] != tree.prompt_ids
        assert other == Branch(token_ids=other.token_ids, loss_mask=(True,) * len(other.token_ids), role=MISMATCHED)
        assert found.length(index) == tree.num_tokens
    assert len(found) == 9 and found.largest_id == trees.largest_id


def test_what_does_not_fit_behind_the_other_prompt_is_cut_and_counted():
    """Prompts of 2 and 6 tokens with completions of 5 and 1, 8 tokens at most: 5 of 5 fit behind no 6, 2 do; 1 fits behind 2."""
    short = PromptTree(prompt_ids=(4, 5), branches=(Branch(token_ids=tuple(range(10, 15)), loss_mask=(True,) * 5),), sample_id=0)
    long = PromptTree(prompt_ids=(6,) * 6, branches=(Branch(token_ids=(9,), loss_mask=(True,)),), sample_id=1)
    report = DataReport(max_length=8)
    found = with_mismatched(labelled([short, long]), report, seed=0, key="data")
    assert [tree.branches[1].token_ids for tree in (found[0], found[1])] == [(9,), (10, 11)]
    assert (report.mismatched_truncated, report.tokens) == (1, 2 + 5 + 1 + 6 + 1 + 2)
    assert "1 mismatched completion cut, to fit max_length 8 behind another prompt" in report.lines()
    assert [found.length(index) for index in (0, 1)] == [8, 9]


def test_the_fingerprint_is_of_partners_and_cuts_too():
    trees = labelled(random_trees(9, branches=1))
    prints = [Mismatched(trees, seed, longest).fingerprint for seed, longest in ((0, None), (0, None), (1, None), (0, 14))]
    assert prints[0] == prints[1] != trees.fingerprint
    assert len(set(prints)) == 3


@pytest.mark.parametrize("forward", LAYOUTS)
def test_a_loss_reads_them_apart_from_the_completions_it_learns_from(forward):
    """Against one sequence at a time; through the fused head as well, whole and tree by tree."""
    data = some()
    trees = [data[index] for index in range(len(data))]
    model = tiny_model()
    policy = Policy(model, forward)
    by_branch = [plain_logps(model, [attrs.evolve(tree, branches=(branch,))]) for tree in trees for branch in tree.branches]
    own, other = by_branch[::2], by_branch[1::2]
    if forward == "shared_prefix":
        use_tree_attention(model)
    batch = collate(trees, forward)

    def check(part, output):
        inputs = loss_inputs(part.batch, output, Layout.LABELED, mismatched_reference_token_logps=torch.zeros(1))
        first = part.batch.trees[0].sample_id
        stop = first + len(part.batch.trees)
        torch.testing.assert_close(inputs.token_logps, torch.cat(own[first:stop]), rtol=0, atol=1e-5)
        torch.testing.assert_close(inputs.mismatched_token_logps, torch.cat(other[first:stop]), rtol=0, atol=1e-5)
        assert not inputs.mismatched_token_logps.requires_grad
        assert inputs.mismatched_sequence_ids.tolist() == [i for i, logps in enumerate(other[first:stop]) for _ in logps]
        assert inputs.labels.tolist() == [tree.branches[0].label for tree in part.batch.trees]
        assert inputs.lengths.tolist() == [tree.branches[0].counted for tree in part.batch.trees]
        assert inputs.tree_ids.tolist() == list(range(len(part.batch.trees)))
        calls.append(len(part.batch.trees))
        return inputs.token_logps.sum()

    calls: list[int] = []
    check(batch.whole(), policy(batch, Needs.MISMATCHED_LOGPS))
    check.divisible = False
    policy(batch, Needs.MISMATCHED_LOGPS, objective=check).backward()
    assert calls == [7, 7]
    for part in batch.parts(most_tokens=1):
        check(part, _of_part(policy(batch, Needs.MISMATCHED_LOGPS), part))
    assert calls[2:] == [1] * 7
    assert policy(batch).mismatched_logps is None


def _of_part(output, part):
    return attrs.evolve(output, tokens=output.tokens[part.tokens], mismatched_logps=output.mismatched_logps[part.mismatched])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    ("architecture", "own_logits"),
    [*((name, False) for name in ("llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3")), ("llama", True), ("gemma2", True)],
)
def test_they_are_computed_after_the_row_over_its_prompts_keys(architecture, own_logits, checkpointing):
    """Windows, soft caps and sinks included; without them in the row, its loss has the gradient of the trees without them."""
    data = some()
    trees = [data[index] for index in range(len(data))]
    model = tiny_model(architecture=architecture, **SHARED_PREFIX[architecture])
    expected = torch.cat([plain_logps(model, [attrs.evolve(tree, branches=tree.branches[1:])]) for tree in trees])
    use_tree_attention(model)
    if checkpointing:
        enable_checkpointing(model)
        model.train()
    policy = Policy(model, "shared_prefix", own_logits=own_logits)
    weights = dict(model.named_parameters())

    def gradients(some_trees, needs):
        output = policy(collate(some_trees, "shared_prefix"), needs)
        return output, torch.autograd.grad(output.tokens.logps.sum(), list(weights.values()), allow_unused=True)

    output, found = gradients(trees, Needs.MISMATCHED_LOGPS)
    torch.testing.assert_close(output.mismatched_logps, expected, rtol=0, atol=1e-5)
    _, without = gradients([attrs.evolve(tree, branches=tree.completions) for tree in trees], Needs.NOTHING)
    torch.testing.assert_close(found, without)


def test_where_nothing_reads_them_they_are_not_computed():
    data = some()
    model = tiny_model()
    use_tree_attention(model)
    batch = collate([data[0], data[1]], "shared_prefix")
    sizes = []
    model.get_decoder().register_forward_hook(lambda _, inputs, output: sizes.append(output.last_hidden_state.shape[1]))
    policy = Policy(model, "shared_prefix")
    policy(batch)
    policy(batch, Needs.MISMATCHED_LOGPS)
    assert sizes == [sizes[0], sizes[0], batch.slots - sizes[0]]
    assert batch.slots - sizes[0] == sum(len(data[index].branches[1].token_ids) - 1 for index in (0, 1))


def test_a_reference_taken_before_is_the_live_one():
    data = some()
    reference = FrozenCopy(Policy(tiny_model(), "padded"))
    taken = Precomputed.of(reference, data, reference.policy, budget=40)
    batch = collate([data[5], data[0], data[3]], "padded")
    expected = reference.token_logps(batch)
    assert len(expected) == len(batch.targets) + len(batch.mismatched_targets)
    torch.testing.assert_close(taken.token_logps(batch), expected)


def test_they_are_in_no_count():
    """Of seven samples, 0, 3 and 6 are undesirable."""
    data = some()
    trees = [data[index] for index in range(len(data))]
    counts = StepCounts.of([trees], Layout.LABELED)
    assert (counts.example, counts.sequence, counts.desirable, counts.undesirable) == (7, 7, 4, 3)
    assert counts.token == sum(tree.branches[0].counted for tree in trees)
