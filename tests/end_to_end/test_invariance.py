"""Promise 1: loss and gradients do not depend on how an optimiser step is cut."""

from __future__ import annotations

import pytest
import torch

from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing.config import build_config
from truing.registry import Registry
from truing.train.given import Given
from truing.train.setup import set_up
from truing.train.step import accumulate_gradients, evaluate

SPLITS = {"1x16": 10**6, "uneven": 120, "16x1": 1}


def gradients(tmp_path, forward, split, method):
    values = {
        "method": method,
        "model": {"name": str(tmp_path / "model"), "dtype": "float64"},
        "data": {"path": str(tmp_path / "rows.jsonl"), "format": "preference"},
        "trainer": {"batch_size": 16, "max_tokens_per_batch": SPLITS[split], "forward": forward},
        "output": {"dir": str(tmp_path / f"{forward}-{split}")},
    }
    run = set_up(build_config(values, registry=Registry.load()), Given(), resume=False)
    with torch.no_grad():  # away from the reference, where the loss's curvature shows
        for weight in run.policy.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype))
    result = accumulate_gradients(run)
    found = {name: weight.grad.clone() for name, weight in run.policy.named_parameters() if weight.grad is not None}
    return {name: float(value) for name, value in result.metrics.items()}, found


@pytest.mark.parametrize("forward", ["shared_prefix", "padded"])
@pytest.mark.parametrize("method", ["dpo", {"name": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}])
def test_loss_metrics_and_every_gradient_are_the_same_to_1e_12(tmp_path, forward, method):
    """16 pairs of uneven lengths as one micro-batch, as some, and as one each, in float64."""
    save_tiny_model(tmp_path / "model", architecture="gpt2")  # no step of it rounds to fp32 when all else is float64
    write_rows(tmp_path / "rows.jsonl", preferences(16))
    metrics, expected = gradients(tmp_path, forward, "1x16", method)
    assert metrics["loss"] > 0
    for split in ("uneven", "16x1"):
        split_metrics, found = gradients(tmp_path, forward, split, method)
        assert split_metrics == pytest.approx(metrics, rel=0, abs=1e-12)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12, msg=f"{split} {name}")


def test_an_evaluation_in_chunks_is_the_same(tmp_path, monkeypatch):
    """Chunks of 3 trees, against all 16 at once."""
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", preferences(16))
    source = {"path": str(tmp_path / "rows.jsonl"), "format": "preference"}
    metrics = []
    for chunk in (1024, 3):
        monkeypatch.setattr("truing.data.tree.CHUNK", chunk)
        values = {
            "method": {"name": "dpo", "loss_type": ["sigmoid", "sft"]},
            "model": {"name": str(tmp_path / "model"), "dtype": "float64", "precompute_reference": True},
            "data": source,
            "eval_data": source,
            "output": {"dir": str(tmp_path / f"run-{chunk}")},
        }
        metrics.append(evaluate(set_up(build_config(values, registry=Registry.load()), Given(), resume=False)))
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-9)
