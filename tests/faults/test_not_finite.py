"""NaN and infinities anywhere in a step: never in the weights, the step is counted and kept, and a replay finds it again."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.core.plugins import Site
from tests.end_to_end.helpers import preferences, write_rows
from tests.faults import poison
from tests.faults.children import truing_child
from tests.faults.runs import LORA, STEPS, WEIGHTS, Tiny, end_of, history, same, whole_checkpoints
from tests.faults.sizes import FULL, only_full
from truing.train.order import DataOrder

ORDER = DataOrder(24, 4, 42)
VALUES = ("nan", "inf", "-inf")
WAYS = {"full": (), "accumulation": ("trainer.gradient_accumulation=4", "trainer.batch_size=1"), "lora": LORA}
CASES = list(itertools.product(poison.OF_A_SAMPLE, VALUES, WAYS))
SAMPLE = [("loss", "nan", "full"), ("gradient", "inf", "lora")]


def steps_with(sample):
    """Return the steps, counted from 0, that a sample is in."""
    return [step for step in range(STEPS) if sample in ORDER.samples(step)]


def checkpoint_weights(run, step):
    return (run / f"checkpoints/step-{step:08d}/weights.safetensors").read_bytes()


def check_left_out(run, steps):
    """The steps are counted and kept with their samples, and the weights after them are those before."""
    assert history(run)[-1]["skipped_steps"] == len(steps)
    assert [int(path.name[-8:]) for path in sorted((run / "skipped").glob("step-*"))] == [step + 1 for step in steps]
    for step in steps:
        kept = json.loads((run / f"skipped/step-{step + 1:08d}/batch.json").read_text())
        assert kept["samples"] == ORDER.samples(step)
    for path in whole_checkpoints(run):
        tables = {**load_file(path / "weights.safetensors"), **load_file(path / "optimizer.safetensors")}
        assert all(tensor.isfinite().all() for tensor in tables.values()), path
    for step in range(1, STEPS):
        changed = checkpoint_weights(run, step + 1) != checkpoint_weights(run, step)
        assert changed == (step not in steps), f"step {step + 1}"
    (weights,) = (run / "model" / name for name in WEIGHTS if (run / "model" / name).exists())
    assert all(tensor.isfinite().all() for tensor in load_file(weights).values())


@pytest.mark.parametrize(("kind", "value", "way"), CASES if FULL else SAMPLE)
def test_a_sample_that_is_not_finite(tmp_path, tiny, kind, value, way, tally):
    options, run = (*WAYS[way], "trainer.save_steps=1"), tmp_path / "run"
    sample = ORDER.samples(len(kind) % 6)[0]
    steps = steps_with(sample)
    assert len(steps) == 2
    spoil = {"before": lambda: poison.sample(kind, sample, float(value))}
    ended = tiny.finish(run, *options, **spoil)
    assert ended.output.count(" left out: not finite: ") == 2
    check_left_out(run, steps)
    if kind == "loss":
        shown = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[value]
        assert [line["step"] - 1 for line in history(run) if line["loss"] == shown] == steps
    unbroken = end_of(run)
    tiny.finish(run, *options, resume=run / f"checkpoints/step-{steps[0] + 1:08d}", **spoil)
    same(run, unbroken)
    replayed = truing_child(tmp_path / "replayed", "replay", run, steps[1] + 1, **spoil).wait()
    assert replayed.code == 0, replayed.said
    (again,) = [line for line in replayed.output.splitlines() if line.startswith("not finite now: ")]
    assert kind in again.removeprefix("not finite now: ").split(", ")
    if kind == "gradient":  # which no sample shows by itself, for that is computed without one
        assert "each of its 4 samples is finite by itself" in replayed.output
    else:
        assert [line.split(":")[0] for line in replayed.output.splitlines() if line.startswith("  ")] == [f"  sample {sample}"]
    tally("injections", injected=1, skipped=2, replayed=1)


@pytest.mark.parametrize(("value", "step"), list(itertools.product(VALUES, (0, 5))) if FULL else [("-inf", 0)])
def test_one_element_of_a_gradient(tmp_path, tiny, value, step, tally):
    """In the first step too, after which the optimiser has no state."""
    options, run = ("trainer.save_steps=1",), tmp_path / "run"
    ended = tiny.finish(run, *options, before=lambda: poison.weight(step, float(value)))
    assert f"step {step + 1} left out: not finite: gradient (samples " in ended.output
    check_left_out(run, [step])
    unbroken = end_of(run)
    tiny.finish(run, *options, resume=run / f"checkpoints/step-{step + 1:08d}")
    same(run, unbroken)
    tally("injections", injected=1, skipped=1)


@pytest.mark.parametrize("save_steps", [5, 2] if FULL else [5])
@pytest.mark.parametrize(
    ("field", "value"), list(itertools.product(("exp_avg", "exp_avg_sq"), VALUES)) if FULL else [("exp_avg", "nan")]
)
def test_the_optimisers_state(tmp_path, tiny, field, value, save_steps, tally):
    """It ends the run, at the next checkpoint or after so many steps, and an earlier checkpoint is there to go on from."""
    options, run = (f"trainer.save_steps={save_steps}", "trainer.max_skipped_steps=3"), tmp_path / "run"
    ended = tiny.start(run, *options, before=lambda: poison.optimizer(5, field, float(value))).wait()
    assert ended.code == 1, ended.said
    if save_steps == 5:
        assert "3 steps in a row were left out, the last one: not finite: optimiser's state" in ended.errors
        assert f"go on from a checkpoint with --resume; truing replay {run} 8" in ended.errors.replace("\n", " ")
        replayed = truing_child(tmp_path / "replayed", "replay", run, 8).wait()
        assert f"  optimiser's state: {field}." in replayed.output, replayed.said
    else:
        assert f"step 6: {field}." in ended.errors and "is not finite, so nothing is saved" in ended.errors
    for path in whole_checkpoints(run):
        assert all(tensor.isfinite().all() for tensor in load_file(path / "optimizer.safetensors").values())
    tiny.finish(run, *options, resume=True)
    same(run, tiny.unbroken(*options))
    tally("injections", injected=1, ended=1, resumed=1)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A run in which one sample is too long for its method, and the folder that the method is installed in."""
    folder = tmp_path_factory.mktemp("faulty")
    site = folder / "site"
    site.mkdir()
    Site(site).install("faulty", poison.PLUGIN)
    tiny = Tiny.make(folder / "assets")
    rows = preferences()
    rows[LONG]["chosen"] += " and so on" * 8
    write_rows(folder / "assets/pairs.jsonl", rows)
    return tiny, site


LONG = 9
PROGRAMS = [(fault, value, ranks) for ranks in (1, 1, 1, 2) for fault in ("loss", "gradient") for value in VALUES][:20]


@only_full
@pytest.mark.parametrize(("fault", "value", "ranks"), PROGRAMS, ids=map(str, range(len(PROGRAMS))))
def test_a_program(tmp_path, faulty, fault, value, ranks, tally):
    """With two ranks it is not finite on one of them only, and both leave the step out. A fork replays it."""
    tiny, site = faulty
    run, paths = tmp_path / "run", [str(site), str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    method = ("method=faulty", f"method.fault={fault}", f"method.value={value}")
    cut = ("trainer.batch_size=2", "--num-processes", "2") if ranks == 2 else ()
    tiny.finish(run, *method, *cut, "trainer.save_steps=1", real=True, PYTHONPATH=os.pathsep.join(paths))
    steps = steps_with(LONG)
    check_left_out(run, steps)
    replayed = truing_child(tmp_path / "replayed", "replay", run, steps[0] + 1, before=lambda: sys.path.insert(0, str(site))).wait()
    assert replayed.code == 0, replayed.said
    assert f"not finite now: {fault}" in replayed.output
    tally("injections into a program", **{f"{ranks} ranks": 1})


def test_the_faulty_element_is_one(tmp_path):
    """The first of three: the gradient of the sum is 1 elsewhere."""
    logps = torch.zeros(3, requires_grad=True)
    poison.BadGradient.apply(logps, float("inf")).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == [float("inf"), 1, 1]
