"""Weighted preference optimisation on numbers derived by hand.

One pair. Chosen tokens have probabilities 1/2 and 1/4 where the squares sum to 1/4: ratios 2 and 1, of which the geometric mean is
sqrt 2. The rejected token has 1/8 where they sum to 1/2: 1/4. The weight of the pair is sqrt 2 / 4.
"""

from __future__ import annotations

from math import log, sqrt

import attrs
import pytest
import torch

from truing import Needs
from truing_dpo import DPO

PAIR = ([log(1 / 2), log(1 / 4)], [log(1 / 8)], [log(1 / 4), log(1 / 4)], [log(1 / 8)])
"""a = ln 2, b = 0."""
SQUARES = [1 / 4, 1 / 4, 1 / 2]
WEIGHT = sqrt(2) / 4


def weighted(paired, squares=SQUARES, pairs=(PAIR,)):
    return attrs.evolve(paired(pairs), token_squared_probs=torch.tensor(squares, dtype=torch.float64).requires_grad_())


def test_a_pair_weighs_the_product_of_its_completions_weights(paired, reduced):
    """beta = 1: -ln 2/3 of the first pair. The second one weighs 1: its tokens are as likely as a sampled one is on average."""
    plain = ([log(1 / 2)], [log(1 / 2)], [log(1 / 2)], [log(1 / 2)])
    inputs = weighted(paired, [*SQUARES, 1 / 2, 1 / 2], [PAIR, plain])
    output = DPO(beta=1, use_weighting=True)(inputs)
    assert output.terms[0].values.tolist() == pytest.approx([WEIGHT * log(3 / 2), log(2)])
    assert reduced(output, inputs)[1]["wpo_weights"].item() == pytest.approx((WEIGHT + 1) / 2)


def test_weights_carry_no_gradient(paired):
    """The gradient of -ln sigmoid(a - b) by each chosen token is -sigmoid(-ln 2) = -1/3, times the weight."""
    inputs = weighted(paired)
    (term,) = DPO(beta=1, use_weighting=True)(inputs).terms
    by_logps, by_squares = torch.autograd.grad(
        term.values.sum(), (inputs.token_logps, inputs.token_squared_probs), allow_unused=True
    )
    assert by_logps.tolist() == pytest.approx([-WEIGHT / 3, -WEIGHT / 3, WEIGHT / 3])
    assert by_squares is None


def test_only_the_terms_of_pairs_are_weighed(paired, reduced):
    """hinge with beta = 1: 1 - ln 2, weighed; the chosen tokens cost ln 2 and ln 4: 3/2 ln 2 twice, by `sft` and by rpo_alpha."""
    inputs = weighted(paired)
    method = DPO(beta=1, loss_type=("hinge", "sft"), rpo_alpha=1.0, use_weighting=True)
    loss, metrics = reduced(method(inputs), inputs)
    assert loss.item() == pytest.approx(WEIGHT * (1 - log(2)) + 3 * log(2))
    assert metrics["loss/hinge"].item() == pytest.approx(WEIGHT * (1 - log(2)))
    assert metrics["loss/sft"].item() == pytest.approx(1.5 * log(2))


def test_rewards_are_those_without_weights(paired):
    with_weights, without = (DPO(use_weighting=weighs)(weighted(paired)).metrics for weighs in (True, False))
    assert with_weights.keys() - without.keys() == {"wpo_weights"}
    assert all(with_weights[name].values.tolist() == term.values.tolist() for name, term in without.items())


def test_it_needs_the_squared_probabilities():
    assert DPO(use_weighting=True).needs == Needs.REFERENCE_LOGPS | Needs.SQUARED_PROBS
