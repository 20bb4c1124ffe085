"""What must change nothing: how trees are ordered, grouped and packed, and who else is computed at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.core.plain import gradients, plain_logps
from tests.core.trees import random_tree, random_trees
from truing.data.batch import collate
from truing.data.packing import pack
from truing.data.tree import Branch, PromptTree
from truing.loss import Needs
from truing.model import flash_cpu
from truing.model.attention import use_tree_attention
from truing.model.policy import Policy
from truing.testing import tiny_model

EXACT = {"rtol": 0.0, "atol": 1e-11}
ARCHITECTURES = ("llama", "mistral", "gemma2")  # flash; a window of 16 tokens; a window and capped scores


@cache
def policy(architecture="llama"):
    model = tiny_model(architecture=architecture, dtype=torch.float64)
    use_tree_attention(model)
    return Policy(model, "shared_prefix")


def branch_logps(architecture, trees):
    """Return the log-probabilities of each branch, by sample and place."""
    batch = collate(trees, "shared_prefix")
    parts = iter(policy(architecture)(batch).tokens.logps.detach().split(batch.lengths.tolist()))
    return {(tree.sample_id, place): next(parts) for tree in trees for place in range(len(tree.branches))}


def require_same(found, expected):
    assert found.keys() <= expected.keys()
    for key, logps in found.items():
        torch.testing.assert_close(logps, expected[key], **EXACT)


several = given(
    architecture=st.sampled_from(ARCHITECTURES),
    count=st.integers(2, 5),
    branches=st.integers(1, 4),
    seed=st.integers(0, 50),
    data=st.data(),
)


@settings(deadline=None, max_examples=25)
@several
def test_order_grouping_and_company_change_nothing(architecture, count, branches, seed, data):
    trees = random_trees(count, seed=seed, branches=branches, longest=24)
    expected = branch_logps(architecture, trees)
    require_same(branch_logps(architecture, data.draw(st.permutations(trees))), expected)
    for row in pack(trees, data.draw(st.integers(1, 200)), "shared_prefix"):
        require_same(branch_logps(architecture, row), expected)
    stranger = random_tree(seed + 1000, sample_id=count, longest=24)
    require_same({k: v for k, v in branch_logps(architecture, [stranger, *trees]).items() if k[0] < count}, expected)


@settings(deadline=None, max_examples=25)
@several
def test_a_branch_twice_is_the_same_twice(architecture, count, branches, seed, data):
    tree = random_tree(seed, branches=branches, longest=24)
    place = data.draw(st.integers(0, branches - 1))
    expected = branch_logps(architecture, [tree])
    found = branch_logps(architecture, [attrs.evolve(tree, branches=(*tree.branches, tree.branches[place]))])
    torch.testing.assert_close(found.pop((0, branches)), expected[0, place], **EXACT)
    require_same(found, expected)


@settings(deadline=None, max_examples=25)
@given(architecture=st.sampled_from(ARCHITECTURES), seed=st.integers(0, 50), prompt=st.integers(1, 30), length=st.integers(1, 30))
def test_one_branch_is_plain_causal_attention(architecture, seed, prompt, length):
    """A prompt of one token and a branch of one token among them."""
    draw = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(4, 250, (prompt + length,), generator=draw).tolist())
    tree = PromptTree(prompt_ids=ids[:prompt], branches=(Branch(token_ids=ids[prompt:], loss_mask=(True,) * length),), sample_id=0)
    model = tiny_model(architecture=architecture, dtype=torch.float64)
    # gemma2's own attention takes its softmax in fp32
    tolerance = {"rtol": 0.0, "atol": 1e-5} if architecture == "gemma2" else EXACT
    torch.testing.assert_close(branch_logps(architecture, [tree])[0, 0], plain_logps(model, [tree]).detach(), **tolerance)


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("longest_causal", [1, 3, 192])
def test_flash_and_a_call_per_branch_agree(branches, longest_causal, monkeypatch):
    monkeypatch.setattr(flash_cpu, "CAUSAL", longest_causal)
    batch = collate(random_trees(4, branches=branches, longest=20), "shared_prefix")
    model = tiny_model(dtype=torch.float64)
    found = []
    for flash in (True, False):
        use_tree_attention(model, flash=flash)
        logps = Policy(model, "shared_prefix")(batch).tokens.logps
        found.append((logps, gradients(model, logps)))
    torch.testing.assert_close(found[0][0], found[1][0], **EXACT)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # RMSNorm rounds gradients to fp32


def test_an_empty_branch_is_refused():
    tree = random_trees(1)[0]
    empty = attrs.evolve(tree, branches=(tree.branches[0], Branch(token_ids=(), loss_mask=())))
    with pytest.raises(ValueError, match="sample 0 has a branch without a token"):
        collate([empty], "shared_prefix")


def test_two_models_and_two_threads_keep_their_layouts():
    """The layout is an argument of the call: nothing that runs at the same time can take it for its own."""
    models = {name: policy(name) for name in ("llama", "mistral")}
    jobs = [(name, random_trees(3, seed=seed, longest=24)) for seed in range(6) for name in models]
    expected = [branch_logps(name, trees) for name, trees in jobs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: branch_logps(*job), jobs))
    for one, other in zip(found, expected, strict=True):
        require_same(one, other)


@pytest.mark.parametrize("forward", ["shared_prefix", "cached", "padded"])
def test_value_and_score_heads_read_the_same_forward(forward):
    """Values at the position that predicts each counted token, scores at each branch's last token."""
    model = tiny_model(dtype=torch.float64)
    if forward == "shared_prefix":
        use_tree_attention(model)
    torch.manual_seed(0)
    heads = [nn.Linear(32, 1, dtype=torch.float64) for _ in range(2)]
    scorer = Policy(model, forward, value_head=heads[0], score_head=heads[1])
    trees = random_trees(4, branches=3)
    output = scorer(collate(trees, forward, with_ends=True), Needs.VALUES | Needs.SCORES)
    values, scores = [], []
    for tree in trees:
        for branch in tree.branches:
            hidden = tiny_hidden(model, tree.prompt_ids + branch.token_ids)
            before = len(tree.prompt_ids) - 1
            values += [heads[0](hidden[before + i]) for i, counted in enumerate(branch.loss_mask) if counted]
            scores.append(heads[1](hidden[-1]))
    torch.testing.assert_close(output.values, torch.cat(values), **EXACT)
    torch.testing.assert_close(output.scores, torch.cat(scores), **EXACT)
    torch.testing.assert_close(output.tokens.logps, plain_logps(model, trees), **EXACT)


def tiny_hidden(model, ids):
    return model.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
