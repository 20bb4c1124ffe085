"""In every type of numbers, the probe lets pass what is right, though rounded, and finds what is wrong, though rounded."""

from __future__ import annotations

import attrs
import pytest
import torch

from tests.core.trees import random_trees
from truing.data import layouts
from truing.errors import ModelError
from truing.model import attention
from truing.model.policy import Policy
from truing.model.probe import TOLERANCE, choose_forward
from truing.testing import tiny_model

TREES = [tree for tree in random_trees(40, longest=30) if min(len(branch.token_ids) for branch in tree.branches) > 4][:4]
"""With branches that are long enough to lose a position."""
RIGHT = {"attention": attention.tree_attention, "add": layouts._Row.add}


@pytest.fixture(autouse=True)
def right_attention_again():
    """Undo, for models of other tests, that a wrong function is registered under the names of the right one."""
    yield
    for flash in (True, False):
        attention.use_tree_attention(tiny_model(), flash=flash)


def scaled(factor):
    """Attention whose scores are multiplied by a factor, in rows of trees."""

    def wrong(module, query, *others, truing_layout=None, **options):
        if truing_layout is not None:
            options["scaling"] = factor * (options.get("scaling") or query.shape[-1] ** -0.5)
        return RIGHT["attention"](module, query, *others, truing_layout=truing_layout, **options)

    return wrong


def moved(by):
    """Attention that takes each prompt's end, and so its first branch's beginning, for another position."""

    def wrong_tree(tree):
        (start, stop), (_, end), *rest = tree.prompt, *tree.branches
        return attrs.evolve(tree, prompt=(start, stop + by), branches=((stop + by, end), *rest))

    def wrong(*tensors, truing_layout=None, **options):
        if truing_layout is not None:
            truing_layout = attrs.evolve(truing_layout, trees=tuple(map(wrong_tree, truing_layout.trees)))
        return RIGHT["attention"](*tensors, truing_layout=truing_layout, **options)

    return wrong


def later(row, ids, first_position):
    """Lay out a branch with position ids of one too many, and a prompt as it should be."""
    return RIGHT["add"](row, ids, first_position + (first_position > 0))


def model_of(architecture, dtype):
    return Policy(tiny_model(architecture=architecture, dtype=dtype), "padded")


KINDS = [("gpt2", torch.float64), *(("llama", dtype) for dtype in TOLERANCE)]
"""llama's norms round to fp32 in fp64 too."""
each_type = pytest.mark.parametrize(("architecture", "dtype"), KINDS, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in KINDS])


def test_every_type_has_its_turn():
    assert {dtype for _, dtype in KINDS} == TOLERANCE.keys()


@each_type
def test_what_is_right_passes(architecture, dtype):
    choice = choose_forward(model_of(architecture, dtype), TREES, "auto")
    assert choice.reason == "every prompt computed once (probed: equal to padded rows)"


@each_type
@pytest.mark.parametrize(
    "broken",
    [scaled(1.05), scaled(0.95), moved(1), moved(-1), None],
    ids=["scale 5 % up", "scale 5 % down", "prompt too long", "prompt too short", "positions"],
)
def test_what_is_wrong_is_found(monkeypatch, architecture, dtype, broken):
    refused_with(monkeypatch, architecture, dtype, broken)


def test_in_fp64_a_millionth_is_found(monkeypatch):
    refused_with(monkeypatch, "gpt2", torch.float64, scaled(1 + 1e-6))


def refused_with(monkeypatch, architecture, dtype, broken):
    """Check that attention, or position ids for None, are found to differ by more than the type's tolerance."""
    if broken is None:
        monkeypatch.setattr(layouts._Row, "add", later)
    else:
        monkeypatch.setattr(attention, "tree_attention", broken)
    with pytest.raises(ModelError, match=rf"differ from plain ones by .* \(allowed: {TOLERANCE[dtype]:g}[,)]"):
        choose_forward(model_of(architecture, dtype), TREES, "shared_prefix")
