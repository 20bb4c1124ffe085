"""What is drawn, how often, and with which log-probability."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch

from truing import Sampling
from truing_transformers.sampler import BLOCK, Sampler

THREE = torch.tensor([1 / 2, 1 / 3, 1 / 6]).log()
CRITICAL = 13.82
"""What chi-square with 2 degrees of freedom exceeds once in 1,000 times."""


def noise(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def draws(logits, count, **sampling):
    """Tokens and log-probabilities of one row of logits for seeds 0 to count - 1."""
    tokens, logps = Sampler(Sampling(**sampling)).draw(logits.expand(count, -1), [noise(seed) for seed in range(count)])
    return tokens, logps


def chi_square(tokens, expected):
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    wanted = torch.tensor(expected).double() * len(tokens)
    seen = wanted > 0
    assert not counts[~seen].any()
    return float(((counts - wanted)[seen] ** 2 / wanted[seen]).sum())


def test_three_tokens_are_drawn_as_often_as_their_probabilities_say():
    tokens, logps = draws(THREE, 6000)
    assert chi_square(tokens, [1 / 2, 1 / 3, 1 / 6]) < CRITICAL
    assert torch.allclose(logps, THREE[tokens], atol=1e-6)


def test_temperature_two_takes_square_roots():
    """sqrt(3) : sqrt(2) : 1 of probabilities 1/2, 1/3, 1/6."""
    roots = [3**0.5, 2**0.5, 1.0]
    expected = [root / sum(roots) for root in roots]
    tokens, logps = draws(THREE, 6000, temperature=2.0)
    assert chi_square(tokens, expected) < CRITICAL
    assert logps.tolist() == pytest.approx([log(expected[token]) for token in tokens], abs=1e-6)


def test_tokens_in_several_blocks_are_drawn_as_often_as_their_probabilities_say():
    """One token in each of three blocks, the last of which is not full; all others have no probability to speak of."""
    logits = torch.full((2 * BLOCK + 40,), -200.0)
    places = torch.tensor([3, BLOCK + 200, 2 * BLOCK + 39])
    logits[places] = THREE
    tokens, logps = draws(logits, 6000)
    index = (tokens.unsqueeze(1) == places).int().argmax(1)
    assert (tokens == places[index]).all()
    assert chi_square(index, [1 / 2, 1 / 3, 1 / 6]) < CRITICAL
    assert torch.allclose(logps, THREE[index], atol=1e-6)


def test_top_k_draws_from_the_k_most_probable_renormalised():
    """Of 1/2 and 1/3: 3/5 and 2/5."""
    tokens, logps = draws(THREE, 6000, top_k=2)
    assert chi_square(tokens, [3 / 5, 2 / 5, 0]) < CRITICAL
    assert logps.exp().tolist() == pytest.approx([(0.6, 0.4)[token] for token in tokens], abs=1e-6)


def test_top_p_draws_from_the_nucleus_renormalised():
    """1/2 is less than 0.6, 1/2 + 1/3 more."""
    tokens, logps = draws(THREE, 6000, top_p=0.6)
    assert chi_square(tokens, [3 / 5, 2 / 5, 0]) < CRITICAL
    assert logps.exp().tolist() == pytest.approx([(0.6, 0.4)[token] for token in tokens], abs=1e-6)
    assert set(draws(THREE, 100, top_p=0.4)[0].tolist()) == {0}


def test_temperature_comes_before_the_nucleus():
    """At temperature 1/2 the squares 9 : 4 : 1 give the first 9/14 > 0.6, which is a nucleus of its own."""
    assert set(draws(THREE, 100, temperature=0.5, top_p=0.6)[0].tolist()) == {0}


def test_greedy_takes_the_most_probable_and_says_its_probability_at_temperature_one():
    tokens, logps = draws(THREE, 5, temperature=0.0, top_k=1, top_p=0.1)
    assert tokens.tolist() == [0] * 5
    assert logps.exp().tolist() == pytest.approx([0.5] * 5)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch():
    logits = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(Sampling())
    together, _ = sampler.draw(logits, [noise(seed) for seed in range(40)])
    alone = [int(sampler.draw(row[None], [noise(seed)])[0]) for seed, row in enumerate(logits)]
    assert together.tolist() == alone


def test_rounding_does_not_change_what_is_drawn():
    """Of 400 draws from a flat distribution of 32,000 tokens none changes when logits move by a few units of the last place."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 32_000, generator=generator) * 0.3
    moved = logits * (1 + 1e-6 * torch.randn(logits.shape, generator=generator))
    sampler = Sampler(Sampling())
    first, second = (sampler.draw(given, [noise(seed) for seed in range(400)])[0] for given in (logits, moved))
    assert (first != second).sum() <= 1


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(3, 500, dtype=torch.bfloat16)
    tokens, logps = Sampler(Sampling()).draw(logits, [noise(seed) for seed in range(3)])
    expected = logits.float().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(1)
    assert logps.dtype == torch.float32 and torch.allclose(logps, expected, atol=1e-6)


def test_the_least_probable_token_that_is_drawn_is_a_probable_one():
    """A token of e^-40 is never drawn in 20,000 draws, with a first random number of zero bits or not."""
    logits = torch.full((BLOCK * 2,), -40.0)
    logits[0] = 0.0
    tokens, logps = draws(logits, 20_000)
    assert (tokens == 0).all() and logps.exp().min() == pytest.approx(1 / (1 + 511 * exp(-40)))
