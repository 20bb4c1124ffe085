"""Every architecture that is promised, against plain passes of the untouched model: which forward it gets, and that it is exact."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.core.architectures import FALLBACK, PAGE, SHARED_PREFIX, WINDOW, architecture_model, forward_of
from tests.core.plain import gradients, plain_logps
from tests.core.trees import random_trees
from truing.data.batch import collate
from truing.model.policy import Policy
from truing.model.probe import ForwardChoice, choose_forward

# fp32 rounds to 6e-8; sums of some hundred terms in another order, twice through two layers and back, come to about 1e-6
TOLERANCE = 1e-5
"""Of a tensor's own largest entry."""
ROUGHER = {
    # a sum over all positions of what cancels in four numbers: in fp32 the plain pass is itself 1.2e-5 off the one in float64
    ("qwen3_next", "model.layers.0.linear_attn.A_log"): 3e-5,
}
ZERO = {
    # what is added to all keys alike adds the same to all scores of a query, which a softmax does not see; rounding is left
    ("opt", "model.decoder.layers.0.self_attn.k_proj.bias"): 1e-5,
    ("opt", "model.decoder.layers.1.self_attn.k_proj.bias"): 1e-5,
}
"""Gradients that are zero by mathematics, and how large they may be, where the largest of other weights are about 10."""
TREES = random_trees(3, branches=3, longest=3 * WINDOW)


def test_the_trees_are_longer_than_the_window():
    assert max(len(tree.prompt_ids) for tree in TREES) > WINDOW, "some prompt tokens see no beginning"
    assert max(len(branch.token_ids) for tree in TREES for branch in tree.branches) > WINDOW, "some see no prompt"
    assert min(len(branch.token_ids) for tree in TREES for branch in tree.branches) < WINDOW, "some see a part of it"


@pytest.mark.parametrize("architecture", SHARED_PREFIX)
def test_shared_prefix_is_exact(architecture):
    choice = choice_checked_against_plain(architecture)
    assert choice.forward == "shared_prefix", choice.reason


@pytest.mark.parametrize("architecture", FALLBACK)
def test_what_cannot_share_a_prefix_falls_back(architecture):
    choice = choice_checked_against_plain(architecture)
    assert choice.forward != "shared_prefix"
    assert choice.reason


def choice_checked_against_plain(architecture: str) -> ForwardChoice:
    """Let the probe choose, then compare what was chosen with plain passes made before."""
    model = architecture_model(architecture)
    expected = plain_logps(model, TREES)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    expected_gradients = dict(zip(names, gradients(model, expected), strict=True))
    policy = Policy(model, "padded")
    choice = choose_forward(policy, TREES, "auto")
    logps = policy(collate(TREES, choice.forward)).tokens.logps
    assert relative_gap(logps, expected) < TOLERANCE, choice
    for name, found in zip(names, gradients(model, logps), strict=True):
        plain, place = expected_gradients[name], (architecture, name)
        if place in ZERO:
            assert max(float(gradient.abs().max()) for gradient in (found, plain)) < ZERO[place], name
        else:
            assert relative_gap(found, plain) < ROUGHER.get(place, TOLERANCE), (name, choice)
    forward, why = forward_of(choice)
    assert f"| `{architecture}` | `{forward}` | {why} |" in PAGE.read_text(), "run python -m tests.core.architectures"
    return choice


def test_the_page_lists_no_other():
    listed = {line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    assert listed == {*SHARED_PREFIX, *FALLBACK}


def relative_gap(ours: Tensor, plain: Tensor) -> float:
    """The largest difference, relative to the tensor's largest entry."""
    return float((ours - plain).detach().abs().max()) / float(plain.detach().abs().max())
