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
    expected_gradients = gradients(model, expected)
    policy = Policy(model, "padded")
    choice = choose_forward(policy, TREES, "auto")
    logps = policy(collate(TREES, choice.forward)).tokens.logps
    assert relative_gap([logps], [expected]) < TOLERANCE, choice
    assert relative_gap(gradients(model, logps), expected_gradients) < TOLERANCE, choice
    forward, why = forward_of(choice)
    assert f"| `{architecture}` | `{forward}` | {why} |" in PAGE.read_text(), "run python -m tests.core.architectures"
    return choice


def test_the_page_lists_no_other():
    listed = {line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    assert listed == {*SHARED_PREFIX, *FALLBACK}


def relative_gap(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of all: a parameter that hardly counts is rounded like its sources."""
    largest = max(float(tensor.detach().abs().max()) for tensor in plain)
    return max(float((one - other).detach().abs().max()) for one, other in zip(ours, plain, strict=True)) / largest
