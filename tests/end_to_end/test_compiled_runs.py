"""Whole runs with compiled layers, by PyTorch's own compiler."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.end_to_end.steps import make_run, prepare_folder
from truing.train.step import gather_metrics, train_step

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler for CPUs needs g++")


def test_a_run_learns_the_same(tmp_path):
    """Policy and reference, several micro-batches of other lengths; names of weights stay what they are."""
    prepare_folder(tmp_path, "llama")
    options = {"dtype": "float32", "max_tokens_per_batch": 64, "learning_rate": 1e-3}
    plain, compiled = (make_run(tmp_path, f"run-{on}", torch_compile=on, **options) for on in (False, True))
    assert (
        compiled.environment["forward"] == f"{plain.environment['forward']}; layers compiled (probed: equal to those that are not)"
    )
    for _ in range(2):
        metrics = [gather_metrics(run, train_step(run).metrics) for run in (plain, compiled)]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-4, abs=1e-6)
        for run in (plain, compiled):
            run.state.step += 1
    found, expected = (dict(run.policy.state_dict()) for run in (compiled, plain))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)
