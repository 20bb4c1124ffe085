"""The forward over prompt trees against the plainest one there is: one unpadded sequence at a time, full logits."""

from __future__ import annotations

import re

import attrs
import pytest
import torch

from tests.core.architectures import FALLBACK, architecture_model
from tests.core.plain import gradients, plain_logps
from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.errors import ModelError
from truing.loss import Layout, Needs
from truing.model.attention import use_tree_attention
from truing.model.policy import Policy, loss_inputs
from truing.model.probe import choose_forward
from truing.testing import tiny_model

EXACT = {"rtol": 0.0, "atol": 1e-11}


@pytest.mark.parametrize("forward", ["shared_prefix", "cached", "padded"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3"])
def test_log_probs_and_gradients_equal_plain_ones(architecture, forward):
    model = tiny_model(architecture=architecture, dtype=torch.float64)
    trees = random_trees(5, branches=3)
    expected = plain_logps(model, trees)
    expected_gradients = gradients(model, expected)
    if forward == "shared_prefix":
        use_tree_attention(model)
    logps = Policy(model, forward)(collate(trees, forward)).tokens.logps
    torch.testing.assert_close(logps, expected, **EXACT)
    # all but gpt2 have an RMSNorm that rounds gradients to fp32, which a shared prompt does after its branches are summed
    tolerance = 1e-10 if architecture == "gpt2" else 1e-5
    for one, other in zip(gradients(model, logps), expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=tolerance)


def test_layouts_survive_gradient_checkpointing():
    """Two rows are alive, and the backward of each computes its layers again: with its own layout, not with the last one."""
    model = tiny_model(dtype=torch.float64)
    use_tree_attention(model)
    policy = Policy(model, "shared_prefix").train()
    batches = [collate(random_trees(3), "shared_prefix"), collate(random_trees(2, seed=1, branches=3), "shared_prefix")]
    kept = [gradients(model, policy(batch).tokens.logps) for batch in batches]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    alive = [policy(batch).tokens.logps for batch in batches]
    recomputed = [gradients(model, logps) for logps in reversed(alive)]
    for ours, alone in zip(reversed(recomputed), kept, strict=True):
        for one, other in zip(ours, alone, strict=True):
            torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_generation_is_unchanged_by_the_attention_function(architecture):
    """A window, capped scores and sinks are the model's own, with a cache and without a layout."""
    model = architecture_model(architecture) if architecture == "gpt_oss" else tiny_model(architecture=architecture)
    ids = torch.tensor([[1, 20, 30, 40]])
    before = model.generate(ids, max_new_tokens=24, do_sample=False)
    use_tree_attention(model)
    assert torch.equal(model.generate(ids, max_new_tokens=24, do_sample=False), before)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_padding_on_the_left_does_not_matter(architecture):
    """A padded position sees nothing, which must not become NaN."""
    model = tiny_model(architecture=architecture)
    use_tree_attention(model)
    ids = torch.tensor([[0] * 20 + [20, 30, 40], list(range(20, 43))])
    mask = torch.tensor([[0] * 20 + [1] * 3, [1] * 23])
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    alone = model.generate(ids[:1, 20:], max_new_tokens=6, do_sample=False)
    assert torch.equal(together[0, 20:], alone[0])


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_model_that_was_probed_is_probed_again_as_it_came(architecture):
    model = tiny_model(architecture=architecture)
    trees = random_trees(3, longest=30)
    first = choose_forward(Policy(model, "padded"), trees, "auto")
    assert choose_forward(Policy(model, "padded"), trees, "auto") == first
    assert first.forward == "shared_prefix"


def test_too_little_memory_is_no_reason_to_choose_another_forward(monkeypatch):
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("truing.model.attention.flash_attention", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        choose_forward(Policy(tiny_model(), "padded"), random_trees(2), "auto")


def test_a_model_that_says_nan_is_named():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert "not finite" in choose_forward(Policy(model, "padded"), random_trees(2), "auto").reason


def test_a_branch_sees_neither_its_sibling_nor_another_tree():
    model = tiny_model(dtype=torch.float64)
    use_tree_attention(model)
    policy = Policy(model, "shared_prefix")
    trees = random_trees(2)
    before = policy(collate(trees, "shared_prefix")).tokens.logps
    changed = attrs.evolve(trees[0].branches[0], token_ids=tuple(reversed(trees[0].branches[0].token_ids)))
    other = [attrs.evolve(trees[0], branches=(changed, trees[0].branches[1])), trees[1]]
    after = policy(collate(other, "shared_prefix")).tokens.logps
    own = trees[0].branches[0].counted
    assert not torch.equal(before[:own], after[:own])
    torch.testing.assert_close(before[own:], after[own:], **EXACT)


def test_prompt_logps_entropy_and_squared_probs():
    model = tiny_model(dtype=torch.float64)
    use_tree_attention(model)
    tree = random_trees(1)[0]
    tree = attrs.evolve(tree, prompt_mask=(True,) * len(tree.prompt_ids))
    needs = Needs.PROMPT_LOGPS | Needs.ENTROPY | Needs.SQUARED_PROBS
    log_probs = model(input_ids=torch.tensor([tree.prompt_ids])).logits[0].log_softmax(-1)
    for forward in ("shared_prefix", "cached", "padded"):
        output = Policy(model, forward)(collate([tree], forward), needs)
        expected = torch.stack([log_probs[i - 1, tree.prompt_ids[i]] for i in range(1, len(tree.prompt_ids))])
        torch.testing.assert_close(output.prompt_tokens.logps, expected, **EXACT)
        first = log_probs[-1]  # predicts the first token of every branch
        torch.testing.assert_close(output.tokens.entropy[0], -(first.exp() * first).sum(), **EXACT)
        torch.testing.assert_close(output.tokens.squared_probs[0], first.exp().square().sum(), **EXACT)


@pytest.mark.parametrize(
    ("architecture", "forward", "own_logits", "reason"),
    [
        ("llama", "shared_prefix", False, "every prompt computed once"),
        ("gpt2", "shared_prefix", False, "every prompt computed once"),
        ("bloom", "cached", False, "do not take an attention function"),
        ("mistral", "shared_prefix", False, "every prompt computed once"),
        ("gemma2", "shared_prefix", False, "every prompt computed once"),
        ("falcon_h1", "padded", True, "do not take|layers of type"),
    ],
)
def test_probe_chooses_what_is_exact(architecture, forward, own_logits, reason):
    # falcon_h1 multiplies its logits by a number of its own, so head(decoder(x)) is not what it says
    settings = {**FALLBACK["falcon_h1"], "lm_head_multiplier": 0.5} if architecture == "falcon_h1" else {}
    model = tiny_model(architecture=architecture, **settings)
    policy = Policy(model, "padded")
    trees = random_trees(4, longest=30)
    choice = choose_forward(policy, trees, "auto")
    assert (choice.forward, choice.own_logits) == (forward, own_logits), choice
    assert re.search(reason, choice.reason)
    torch.testing.assert_close(policy(collate(trees, forward)).tokens.logps, plain_logps(model, trees), rtol=0, atol=2e-5)


def test_probe_notices_a_model_that_is_wrong(monkeypatch):
    def everything(count, reach, window, device):
        return torch.ones(count, reach, dtype=torch.bool, device=device).tril(reach - count)

    monkeypatch.setattr("truing.model.attention._sees", everything)
    model = tiny_model(architecture="mistral")  # its window is 16 tokens, which the attention function does not honour now
    trees = random_trees(4, longest=40)
    policy = Policy(model, "padded")
    choice = choose_forward(policy, trees, "auto")
    assert choice.forward == "cached"
    assert "differ from plain ones" in choice.reason
    torch.testing.assert_close(policy(collate(trees, "cached")).tokens.logps, plain_logps(model, trees), rtol=0, atol=2e-5)
    with pytest.raises(ModelError, match="shared_prefix, but its log-probabilities"):
        choose_forward(policy, trees, "shared_prefix")


def test_padded_on_request():
    choice = choose_forward(Policy(tiny_model(), "padded"), random_trees(2), "padded")
    assert choice.forward == "padded"


def test_a_tree_without_a_prompt_is_refused():
    tree = attrs.evolve(random_trees(1)[0], prompt_ids=())
    with pytest.raises(ValueError, match="sample 0 has no prompt token"):
        collate([tree], "padded")


def test_loss_inputs_line_up():
    trees = [attrs.evolve(tree, margin=margin) for tree, margin in zip(random_trees(2), (0.5, None), strict=True)]
    batch = collate(trees, "padded")
    inputs = loss_inputs(batch, Policy(tiny_model(), "padded")(batch), Layout.PAIRED)
    assert inputs.tree_ids.tolist() == [0, 0, 1, 1]
    assert inputs.lengths.tolist() == [branch.counted for tree in trees for branch in tree.branches]
    assert inputs.margins.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert inputs.labels is None
    first_of_each = inputs.lengths.cumsum(0) - inputs.lengths
    assert inputs.positions[first_of_each].tolist() == [0, 0, 0, 0]
