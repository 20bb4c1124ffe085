"""Promise 1: loss and gradients do not depend on how an optimiser step is cut or shared out."""

from __future__ import annotations

import pytest
import torch

from tests.end_to_end.steps import make_run, on_ranks, prepare_folder, step
from truing.train import objective
from truing.train.step import evaluate

SPLITS = {"1x16": 10**6, "4x4": 230, "uneven": 120, "16x1": 1}
SUM = {"name": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
AOT = {"name": "dpo", "loss_type": ["aot", "aot_unpaired"], "label_smoothing": 0.1}
WPO = {"name": "dpo", "use_weighting": True}
STEP = "sorted-margins"
"""A loss that must see the whole step."""
SCORES = ["scored", "sorted-scores"]
"""Losses that read scores: without log-probabilities, and with them over the whole step."""


def require_same(one, other, tolerance):
    (metrics, gradients), (expected, expected_gradients) = one, other
    padding = "padding_fraction"  # which is about how rows are cut
    metrics, expected = ({name: found[name] for name in found if name != padding} for found in (metrics, expected))
    assert metrics == pytest.approx(expected, rel=0, abs=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("forward", ["shared_prefix", "padded"])
@pytest.mark.parametrize("method", ["dpo", SUM, AOT, WPO, STEP, *SCORES], ids=["dpo", "sum", "aot", "wpo", "step", *SCORES])
def test_loss_metrics_and_every_gradient_are_the_same_to_1e_12(tmp_path, forward, method):
    """16 pairs of uneven lengths as one micro-batch, as four, as some, and as one each, in float64."""
    prepare_folder(tmp_path)
    expected = step(make_run(tmp_path, "1x16", method=method, forward=forward, max_tokens_per_batch=SPLITS["1x16"]))
    assert expected[0]["loss"] != 0
    for split in ("4x4", "uneven", "16x1"):
        run = make_run(tmp_path, split, method=method, forward=forward, max_tokens_per_batch=SPLITS[split])
        require_same(step(run), expected, 1e-12)


@pytest.mark.parametrize("method", ["dpo", STEP])
def test_head_and_loss_by_parts_are_those_of_the_whole(tmp_path, monkeypatch, method):
    """Logits kept for all tokens at once, for a few trees at a time, and for none."""
    prepare_folder(tmp_path)
    expected = step(make_run(tmp_path, "whole", method=method))
    vocabulary = 260
    for name, tokens in (("parts", 20), ("none", 0)):
        monkeypatch.setattr("truing.model.head.KEPT_BYTES", 4 * vocabulary * tokens)
        monkeypatch.setattr("truing.model.head.PART_BYTES", 4 * vocabulary * tokens)
        require_same(step(make_run(tmp_path, name, method=method)), expected, 1e-12)


@pytest.mark.parametrize("method", ["dpo", STEP, *SCORES])
def test_two_ranks_give_what_one_does(tmp_path, method):
    """15 pairs, so that ranks have unequal shares, in float32: 1e-6; and one pair, of which the second rank has none."""
    for rows in (15, 1):
        folder = tmp_path / str(rows)
        folder.mkdir()
        prepare_folder(folder, rows=rows)
        expected = step(make_run(folder, "one", method=method, dtype="float32", batch_size=16))
        shared = on_ranks(folder, 2, method=method, dtype="float32", batch_size=8, max_tokens_per_batch=100)
        require_same(shared, expected, 1e-6)


@pytest.mark.parametrize("method", ["dpo", STEP, "scored"])
def test_weights_sharded_over_two_ranks_give_the_same(tmp_path, method):
    """FSDP2 on CPUs, and ranks with unequal numbers of micro-batches."""
    prepare_folder(tmp_path, rows=15)
    expected = step(make_run(tmp_path, "one", method=method, dtype="float32"))
    options = {"dtype": "float32", "batch_size": 8, "max_tokens_per_batch": 100}
    require_same(on_ranks(tmp_path, 2, sharded=True, method=method, **options), expected, 1e-6)


def test_a_loss_of_the_whole_step_is_called_once_a_step(tmp_path):
    prepare_folder(tmp_path)
    run = make_run(tmp_path, "run", method=STEP, max_tokens_per_batch=60)
    metrics, _ = step(run)
    assert metrics["calls"] == 1


def test_dropout_is_drawn_once_for_both_passes_of_a_step(tmp_path, monkeypatch):
    """The second pass repeats the first one's dropout, so that two passes over one micro-batch give what a single one does."""
    prepare_folder(tmp_path)
    found = []
    for name in ("one", "two"):
        run = make_run(tmp_path, name, method=STEP, disable_dropout=False)
        assert run.policy.causal_lm.config.resid_pdrop > 0
        run.wrapped.train()
        torch.manual_seed(0)
        found.append(step(run))
        monkeypatch.setattr("truing.train.step.make_objectives", objective._differentiate_whole_step)
    require_same(found[1], found[0], 1e-12)


def test_an_evaluation_in_chunks_is_the_same(tmp_path, monkeypatch):
    """Chunks of 3 trees, against all 16 at once."""
    prepare_folder(tmp_path, architecture="llama")
    metrics = []
    for chunk in (1024, 3):
        monkeypatch.setattr("truing.data.tree.CHUNK", chunk)
        metrics.append(evaluate(make_run(tmp_path, f"run-{chunk}", method=SUM, eval_rows=True)))
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-9)


def test_micro_batches_without_anything_to_learn_from_change_nothing(tmp_path):
    prepare_folder(tmp_path)
    expected = step(make_run(tmp_path, "whole", method="some-margins"))
    assert expected[0]["loss"] > 0
    require_same(step(make_run(tmp_path, "cut", method="some-margins", max_tokens_per_batch=1)), expected, 1e-12)


def test_a_coefficient_is_averaged_over_the_steps_of_an_evaluation(tmp_path):
    prepare_folder(tmp_path)
    run = make_run(tmp_path, "run", method=STEP, eval_rows=True, batch_size=4)
    assert evaluate(run)["eval_calls"] == pytest.approx(1.0)


def test_a_loss_of_the_whole_step_evaluates_a_step_at_a_time(tmp_path):
    """16 pairs in steps of 16 on rows of at most 60 tokens, against one forward."""
    prepare_folder(tmp_path)
    metrics = [
        evaluate(make_run(tmp_path, str(budget), method=STEP, eval_rows=True, max_tokens_per_batch=budget))
        for budget in (10**6, 60)
    ]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-12)
