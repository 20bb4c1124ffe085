"""Whole steps on a CUDA device: the host waits once, for the guard."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.end_to_end.steps import make_run, prepare_folder
from truing.train.step import gather_metrics, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

METHODS = ["dpo", "ipo", "orpo", "simpo", "sft", "reward-model", {"name": "dpo", "loss_type": "sppo_hard"}]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_reads_numbers_off_the_device_once(tmp_path, method, precision):
    require_one_wait(tmp_path, method=method, mixed_precision=precision)


def test_so_does_a_compiled_one(tmp_path):
    require_one_wait(tmp_path, method="dpo", mixed_precision="bf16", torch_compile=True)


def require_one_wait(tmp_path, **options):
    prepare_folder(tmp_path, "llama")
    run = make_run(tmp_path, "run", dtype="float32", **options)
    train_step(run)
    run.state.step += 1
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as waited:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = train_step(run)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{warning.filename}:{warning.lineno}" for warning in waited if "called a synchronizing" in str(warning.message)]
    assert [place.split("/")[-1].split(":")[0] for place in places] == ["guard.py"], places
    assert torch.tensor(list(gather_metrics(run, result.metrics).values())).isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_moment_that_is_not_finite_keeps_the_weights_as_they_are(tmp_path, value, dtype):
    prepare_folder(tmp_path, "llama")
    run = make_run(tmp_path, "run", dtype=dtype)
    train_step(run)
    run.state.step += 1
    moments = [moment for moment in run.state.moments() if moment.dim()]
    moments[len(moments) // 2].view(-1)[-1] = value
    weights, before = ([tensor.detach().clone() for tensor in some] for some in (run.policy.parameters(), moments))
    train_step(run)
    assert run.state.skipped_steps == 1
    for one, other in zip((*run.policy.parameters(), *moments), (*weights, *before), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
