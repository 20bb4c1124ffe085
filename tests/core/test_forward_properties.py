"""What must change nothing: how trees are ordered, grouped and packed, and who else is computed at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

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
ARCHITECTURES = (
    "llama",
    "mistral",
    "gemma2",
    "gpt2",
)  # flash; a window of 16 tokens; a window and capped scores; float64 throughout
ROUNDING = 1e-6
"""Of a gradient's norm: an RMSNorm rounds to fp32, which a shared prompt does after its branches are summed; gpt2 has none."""


@cache
def policy(architecture="llama"):
    model = tiny_model(architecture=architecture, dtype=torch.float64)
    use_tree_attention(model)
    return Policy(model, "shared_prefix")


def weighted(logps, batch):
    """A sum in which every log-probability has a weight of its token, whatever else is in the batch."""
    return (logps * (batch.targets / 125 - 1)).sum()


def measured(architecture, trees):
    """Return the log-probabilities of each branch, by sample and place, and the gradients of their weighted sum."""
    batch = collate(trees, "shared_prefix")
    logps = policy(architecture)(batch).tokens.logps
    found = torch.autograd.grad(weighted(logps, batch), list(policy(architecture).parameters()))
    parts = iter(logps.detach().split(batch.lengths.tolist()))
    return {(tree.sample_id, place): next(parts) for tree in trees for place in range(len(tree.branches))}, found


def summed(gradients_of):
    return [torch.stack(parts).sum(0) for parts in zip(*gradients_of, strict=True)]


def require_same(found, expected):
    assert found.keys() <= expected.keys()
    for key, logps in found.items():
        torch.testing.assert_close(logps, expected[key], **EXACT)


def require_same_gradients(architecture, found, expected):
    tolerance = 1e-11 if architecture == "gpt2" else ROUNDING
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm().clamp(min=1e-3)


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
    """Gradients, too, are the sum of the trees' own."""
    trees = random_trees(count, seed=seed, branches=branches, longest=24)
    alone = [measured(architecture, [tree]) for tree in trees]
    expected = {key: logps for of_tree, _ in alone for key, logps in of_tree.items()}
    expected_gradients = summed(found for _, found in alone)
    logps, found = measured(architecture, data.draw(st.permutations(trees)))
    require_same(logps, expected)
    require_same_gradients(architecture, found, expected_gradients)
    rows = [measured(architecture, row) for row in pack(trees, data.draw(st.integers(1, 200)), "shared_prefix")]
    for logps, _ in rows:
        require_same(logps, expected)
    require_same_gradients(architecture, summed(found for _, found in rows), expected_gradients)
    stranger = random_tree(seed + 1000, sample_id=count, longest=24)
    strange_logps, strange_gradients = measured(architecture, [stranger])
    logps, found = measured(architecture, [stranger, *trees])
    require_same(logps, expected | strange_logps)
    require_same_gradients(architecture, found, summed([expected_gradients, strange_gradients]))


@settings(deadline=None, max_examples=25)
@several
def test_a_branch_twice_is_the_same_twice(architecture, count, branches, seed, data):
    """And adds to the gradient what it gives with its prompt alone."""
    tree = random_tree(seed, branches=branches, longest=24)
    place = data.draw(st.integers(0, branches - 1))
    expected, own_gradients = measured(architecture, [tree])
    _, its_gradients = measured(architecture, [attrs.evolve(tree, branches=(tree.branches[place],))])
    found, found_gradients = measured(architecture, [attrs.evolve(tree, branches=(*tree.branches, tree.branches[place]))])
    torch.testing.assert_close(found.pop((0, branches)), expected[0, place], **EXACT)
    require_same(found, expected)
    require_same_gradients(architecture, found_gradients, summed([own_gradients, its_gradients]))


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
    torch.testing.assert_close(measured(architecture, [tree])[0][0, 0], plain_logps(model, [tree]).detach(), **tolerance)


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


def two_rows_alive(job):
    """Return log-probabilities and gradients of two rows, the forward of both before the backward of either."""
    architecture, rows = job
    batches = [collate(trees, "shared_prefix") for trees in rows]
    alive = [policy(architecture)(batch).tokens.logps for batch in batches]
    weights = list(policy(architecture).parameters())
    return [
        (logps.detach(), torch.autograd.grad(weighted(logps, batch), weights)) for logps, batch in zip(alive, batches, strict=True)
    ]


def meet_in_attention(model, barrier):
    """Make every attention of the model wait, in forward and backward, until another thread is in one of its own."""

    def meet(*_):
        barrier.wait(timeout=20)

    def meet_backward(module, arguments, output):
        output[0].register_hook(meet)

    for module in model.modules():
        if type(module).__name__.endswith("Attention"):
            yield module.register_forward_pre_hook(meet)
            yield module.register_forward_hook(meet_backward)


def test_two_models_and_two_threads_keep_their_layouts():
    """The layout is an argument of the call: nothing that runs at the same time can take it for its own."""
    jobs = {
        name: [(name, [random_trees(3, seed=seed, longest=24), random_trees(2, seed=seed + 50, branches=3)]) for seed in seeds]
        for name, seeds in (("llama", range(3)), ("mistral", range(3, 6)))
    }
    expected = {name: [[measured(name, trees) for trees in rows] for _, rows in mine] for name, mine in jobs.items()}
    barrier = Barrier(2)
    hooks = [hook for name in jobs for hook in meet_in_attention(policy(name).causal_lm, barrier)]
    try:
        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(jobs, pool.map(lambda mine: list(map(two_rows_alive, mine)), jobs.values()), strict=True))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(hooks) == 2 * 2 * 2, "of two models, each of whose two layers waits in both directions"
    for name in jobs:
        for of_job, alone in zip(found[name], expected[name], strict=True):
            for (logps, ours), (by_branch, own) in zip(of_job, alone, strict=True):
                torch.testing.assert_close(logps, torch.cat(list(by_branch.values())), **EXACT)
                for one, other in zip(ours, own, strict=True):
                    torch.testing.assert_close(one, other, **EXACT)


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
