"""Where values become a loss: counts over the whole step."""

from __future__ import annotations

import pytest
import torch

from tests.core.trees import random_trees
from truing.loss import Layout, LossOutput, Term
from truing.reduce import StepCounts, add_shares, reduce_output, reduce_term


def test_counts_are_over_all_micro_batches():
    trees = random_trees(5)
    split = StepCounts.of([trees[:1], trees[1:2], trees[2:]], Layout.PAIRED)
    assert (split.pair, split.example, split.sequence) == (5, 5, 10)
    assert split.token == sum(branch.counted for tree in trees for branch in tree.branches)
    assert split.chosen_token == sum(tree.branches[0].counted for tree in trees)


def test_terms_add_up_to_weighted_means():
    """Two pairs (1, 3) and four tokens (1, 1, 1, 5): 2 * mean(1, 3) + 0.5 * mean(1, 1, 1, 5) = 4 + 1 = 5, in two calls."""
    counts = StepCounts(pair=2, token=4, example=2)
    total = {}
    for pair, tokens in (([1.0], [1.0]), ([3.0], [1.0, 1.0, 5.0])):
        output = LossOutput(
            terms=[Term(torch.tensor(pair), "pair", 2.0), Term(torch.tensor(tokens), "token", 0.5)],
            metrics={"beta": Term(torch.tensor(0.1), "constant")},
        )
        add_shares(total, reduce_output(output, counts, examples=1)[1])
    assert total["loss"].item() == pytest.approx(5.0)
    assert total["beta"].item() == pytest.approx(0.1)


def test_a_count_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="per 'pair', but this step has none"):
        reduce_term(Term(torch.ones(1), "pair"), StepCounts.of([random_trees(1)], Layout.SINGLE))


def test_a_metric_may_be_a_difference_of_means_and_is_left_out_where_one_is_of_nothing():
    """Two desirable values (3, 5) and one undesirable (1): 4 - 1 = 3."""
    desirable, undesirable = torch.tensor([3.0, 5.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    output = LossOutput(
        terms=[Term(torch.ones(3), "sequence")],
        metrics={
            "margins": (Term(desirable, "desirable"), Term(undesirable, "undesirable", -1.0)),
            "chosen": Term(desirable, "desirable"),
        },
    )
    metrics = reduce_output(output, StepCounts(sequence=3, desirable=2, undesirable=1))[1]
    assert {name: float(value) for name, value in metrics.items()} == {"loss": 1.0, "margins": 3.0, "chosen": 4.0}
    assert reduce_output(output, StepCounts(sequence=2, desirable=2))[1].keys() == {"loss", "chosen"}


def test_unknown_per_is_an_error():
    with pytest.raises(ValueError, match=r"must be one of pair, example, .* got 'batch'"):
        Term(torch.ones(1), "batch")
