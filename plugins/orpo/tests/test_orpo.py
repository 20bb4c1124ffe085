"""ORPO on numbers derived by hand, and what holds for all inputs.

Odds of a probability q are q / (1 - q). Chosen has mean log-probability ln 3/4, odds 3; rejected ln 1/3, odds 1/2. The ratio is 6,
so -ln sigmoid(ln 6) = ln 7/6, and exchanged ln 7.
"""

from __future__ import annotations

from math import exp, isfinite, log

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import Layout, Needs
from truing.declared import prompt_tokens_of
from truing.testing import check_cut, check_loss
from truing_orpo import ORPO

GOOD = [log(3 / 4) - 0.1, log(3 / 4) + 0.1]
BAD = [log(1 / 3)] * 3
ROWS = [([-1.0, -2.0, -0.5], GOOD, BAD), ([-0.5], BAD, GOOD)]
METHODS = [ORPO(), ORPO(nll_on_prompt=False), ORPO(beta=2.0)]
few_examples = settings(max_examples=50, deadline=None)


def test_odds_ratio(paired):
    _, ratio = ORPO(beta=0.3)(paired(ROWS)).terms
    assert (ratio.per, ratio.weight) == ("pair", 0.3)
    assert ratio.values.tolist() == pytest.approx([log(7 / 6), log(7)], rel=1e-12)


def test_loss(paired, reduced):
    """Prompts cost 3.5 + 0.5, chosen 2 ln 4/3 + 3 ln 3, over 4 + 5 tokens; odds 0.3 (ln 7/6 + ln 7) / 2."""
    inputs = paired(ROWS)
    loss, _ = reduced(ORPO(beta=0.3)(inputs), inputs)
    assert loss.item() == pytest.approx((4 + 2 * log(4 / 3) + 3 * log(3)) / 9 + 0.15 * log(49 / 6), rel=1e-12)


def test_loss_without_the_prompt(paired, reduced):
    """Chosen alone: (2 ln 4/3 + 3 ln 3) / 5."""
    inputs = attrs.evolve(paired(ROWS), prompt_token_logps=None)
    loss, metrics = reduced(ORPO(beta=0.3, nll_on_prompt=False)(inputs), inputs)
    assert metrics["nll_loss"].item() == pytest.approx((2 * log(4 / 3) + 3 * log(3)) / 5, rel=1e-12)
    assert loss.item() == pytest.approx(metrics["nll_loss"].item() + 0.15 * log(49 / 6), rel=1e-12)


def test_metrics(paired, reduced):
    """Of the first pair; beta = 0.5: rewards ln(3/4) / 2 and ln(1/3) / 2, margin ln(9/4) / 2."""
    inputs = paired(ROWS[:1])
    _, metrics = reduced(ORPO(beta=0.5)(inputs), inputs)
    assert {name: value.item() for name, value in metrics.items() if name != "loss"} == pytest.approx(
        {
            "rewards/chosen": log(3 / 4) / 2,
            "rewards/rejected": log(1 / 3) / 2,
            "rewards/margins": log(9 / 4) / 2,
            "rewards/accuracies": 1.0,
            "logps/chosen": log(3 / 4),
            "logps/rejected": log(1 / 3),
            "nll_loss": (3.5 + 2 * log(4 / 3)) / 5,
            "log_odds_chosen": log(6),
            "log_odds_ratio": -log(7 / 6),
        }
    )


def test_metrics_carry_no_gradient(paired):
    output = ORPO()(paired(ROWS))
    assert [name for name, term in output.metrics.items() if term.values.requires_grad] == []


def test_a_tie_is_no_win(paired, reduced):
    inputs = paired([([-1.0], BAD, BAD)])
    _, metrics = reduced(ORPO()(inputs), inputs)
    assert metrics["rewards/accuracies"].item() == 0.0
    assert metrics["log_odds_ratio"].item() == pytest.approx(-log(2))


def test_what_it_reads():
    assert ORPO.layout is Layout.PAIRED
    assert (ORPO().needs, prompt_tokens_of(ORPO())) == (Needs.PROMPT_LOGPS, "all")
    alone = ORPO(nll_on_prompt=False)
    assert (alone.needs, prompt_tokens_of(alone)) == (Needs.NOTHING, "none")


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match="^beta must be >= 0, got -0.1"):
        ORPO(beta=-0.1)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_promises_to_core(method):
    check_loss(method)


def plain(chosen: list[float], rejected: list[float]) -> tuple[float, float]:
    """The log-odds and its log-sigmoid as TRL 1.16.0 computes them, in plain arithmetic."""
    w, r = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
    odds = (w - r) - (log(1 - exp(w)) - log(1 - exp(r)))
    return odds, log(1 / (1 + exp(-odds)))


tokens = st.lists(st.floats(-6, -0.05), min_size=1, max_size=5)
batches = st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=5)


@few_examples
@given(rows=batches, beta=st.floats(0, 3))
def test_agrees_with_the_formulas_of_trl(paired, reduced, rows, beta):
    inputs = paired(rows)
    loss, metrics = reduced(ORPO(beta=beta)(inputs), inputs)
    odds = [plain(chosen, rejected) for _, chosen, rejected in rows]
    labels = [x for prompt, chosen, _ in rows for x in (*prompt, *chosen)]
    nll, ratio = -sum(labels) / len(labels), sum(ratio for _, ratio in odds) / len(rows)
    assert loss.item() == pytest.approx(nll - beta * ratio, rel=1e-9)
    assert metrics["log_odds_chosen"].item() == pytest.approx(sum(value for value, _ in odds) / len(rows), rel=1e-9, abs=1e-9)
    assert metrics["log_odds_ratio"].item() == pytest.approx(ratio, rel=1e-9)


@few_examples
@given(rows=batches)
def test_exchanging_chosen_and_rejected_flips_the_odds(paired, rows):
    there = ORPO()(paired(rows)).metrics["log_odds_chosen"].values
    back = ORPO()(paired([(prompt, rejected, chosen) for prompt, chosen, rejected in rows])).metrics["log_odds_chosen"].values
    assert back.tolist() == pytest.approx((-there).tolist(), abs=1e-12)


@few_examples
@given(rows=batches, data=st.data())
def test_sum_over_micro_batches_is_the_batch(paired, rows, data):
    """Loss, metrics and gradients, with the counts of the whole step."""
    cut = data.draw(st.integers(0, len(rows)))
    check_cut(ORPO(), paired(rows), [paired(part) for part in (rows[:cut], rows[cut:]) if part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-12, 1e-7, 1e2, 1e4])
def test_extremes_are_finite(paired, reduced, dtype, size):
    """Completions that are certain, or as good as impossible, on either side."""
    inputs = paired([([-1.0], [-size], [-1.0]), ([-1.0], [-1.0], [-size]), ([-1.0], [-size], [-size])], dtype)
    loss, metrics = reduced(ORPO()(inputs), inputs)
    loss.backward()
    assert all(isfinite(value.item()) for value in metrics.values())
    assert inputs.token_logps.grad.isfinite().all()


def test_only_what_it_reads_enters(paired):
    inputs = paired(ROWS)
    noise = torch.full_like(inputs.token_logps, float("nan"))
    disturbed = attrs.evolve(inputs, token_entropy=noise, reference_token_logps=noise, margins=noise[:4])
    for term, other in zip(ORPO()(inputs).terms, ORPO()(disturbed).terms, strict=True):
        assert term.values.tolist() == other.values.tolist()
