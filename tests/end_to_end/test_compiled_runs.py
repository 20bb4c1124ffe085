"""Whole runs with compiled layers, by PyTorch's own compiler."""

from __future__ import annotations

import shutil

import pytest
import torch
from click.testing import CliRunner

from tests.end_to_end.helpers import write_config
from tests.end_to_end.steps import make_run, on_ranks, prepare_folder, step
from truing.cli import main
from truing.train.step import gather_metrics, train_step

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler for CPUs needs g++")


def test_a_run_learns_the_same(tmp_path):
    """Policy and reference, several micro-batches of other lengths; names of weights stay what they are."""
    prepare_folder(tmp_path, "llama")
    options = {"dtype": "float32", "max_tokens_per_batch": 64, "learning_rate": 1e-3}
    plain, compiled = (make_run(tmp_path, f"run-{on}", torch_compile=on, **options) for on in (False, True))
    assert (
        compiled.environment["forward"]
        == f"{plain.environment['forward']}; layers compiled (the policy's probed: equal to those that are not)"
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


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_compute_what_one_does_uncompiled(tmp_path, sharded):
    prepare_folder(tmp_path, "llama", rows=15)
    metrics, gradients = step(make_run(tmp_path, "plain", dtype="float32"))
    found, shared = on_ranks(tmp_path, 2, dtype="float32", batch_size=8, torch_compile=True, sharded=sharded)
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert shared.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))


def test_a_resumed_run_is_bitwise_the_unbroken_one(tmp_path):
    """Though it is compiled anew: on the same rows as at first, those of the probe."""
    config = write_config(tmp_path, max_steps=4, save_steps=2, torch_compile=True)
    assert CliRunner().invoke(main, ["train", str(config)]).exit_code == 0
    weights = tmp_path / "run/model/model.safetensors"
    unbroken = weights.read_bytes()
    shutil.rmtree(tmp_path / "run/model")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    torch._dynamo.reset()
    assert CliRunner().invoke(main, ["train", str(config), "--resume"]).exit_code == 0
    assert weights.read_bytes() == unbroken
