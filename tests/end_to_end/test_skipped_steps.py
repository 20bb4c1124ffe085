"""Steps that are left out: counted, kept, and computed again; runs and checkpoints that commands look at."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil

import attrs
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.end_to_end.helpers import write_config
from tests.end_to_end.steps import make_run, prepare_folder
from truing.cli import main
from truing.errors import ConfigError
from truing.train.guard import ENOUGH, judge, take_state
from truing.train.run_dir import RunDir
from truing.train.skipped import keep_skipped, read_skipped
from truing.train.state import random_state
from truing.train.step import train_step


def truing(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def poison(folder, letter="g"):
    """Make the embedding of one byte NaN: only the samples that have it are to blame."""
    from transformers import AutoTokenizer

    file = folder / "model/model.safetensors"
    weights = load_file(file)
    (token,) = AutoTokenizer.from_pretrained(folder / "model")(letter, add_special_tokens=False)["input_ids"]
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module", params=[(), ("model.precompute_reference=true",)], ids=["live", "precomputed"])
def skipping(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("skipping")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUING_CACHE", str(folder / "cache"))
        config = write_config(folder, batch_size=2, max_skipped_steps=100, save_steps=4)
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        rows = [{**row, "chosen": row["chosen"].replace("green", "brown")} for row in rows]
        rows = [{key: value.replace("g", "k") for key, value in row.items()} for row in rows[:10]]
        rows[3]["rejected"] += " grey"
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        poison(folder)
        done = truing("train", config, *request.param)
    assert done.exit_code == 0, done.output
    return folder / "run", done.output


def test_only_the_step_with_the_sample_is_left_out_and_named(skipping):
    run, output = skipping
    assert output.count("left out: not finite: loss, log-probabilities, reference's log-probabilities, gradient (samples ") == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped_steps"] == 1
    assert [line["loss"] != line["loss"] for line in lines].count(True) == 1
    trained = load_file(run / "model/model.safetensors")
    begun = load_file(run.parent / "model/model.safetensors")
    finite = begun["model.embed_tokens.weight"].isfinite()
    assert trained["model.embed_tokens.weight"][finite].isfinite().all()
    assert not torch.equal(trained["model.norm.weight"], begun["model.norm.weight"])


def test_replay_finds_the_sample(skipping):
    run, _ = skipping
    (kept,) = (run / "skipped").glob("step-*")
    step = int(kept.name.removeprefix("step-"))
    done = truing("replay", run, step)
    assert done.exit_code == 0, done.output
    assert f"step {step} of {run}: left out because of loss" in done.output
    assert "computed again: loss nan, grad_norm nan" in done.output
    blamed = [line for line in done.output.splitlines() if line.startswith("  sample")]
    assert len(blamed) == 1 and blamed[0].startswith("  sample 3: not finite: loss, log-probabilities")


def test_a_step_that_was_not_left_out_cannot_be_replayed(skipping):
    run, _ = skipping
    done = truing("replay", run, 900)
    assert done.exit_code == 2
    assert "step 900 is not among the steps that" in done.output


def test_runs_and_their_checkpoints_are_listed(skipping):
    run, _ = skipping
    listed = json.loads(truing("runs", run.parent, "--json").output)
    assert [(facts["method"], facts["step"], facts["checkpoint"], facts["state"]) for facts in listed] == [
        ("dpo", 5, 5, "verified")
    ]
    assert listed[0]["model"] and listed[0]["running"] is None and listed[0]["bytes"] > 100_000
    assert "verified" in truing("runs", run.parent).output
    whole = truing("verify", run)
    assert whole.exit_code == 0 and whole.output.count("whole") == 2
    state = run / "checkpoints/step-00000005/state.json"
    text = state.read_bytes()
    state.write_bytes(text[:-1])
    try:
        broken = truing("verify", run)
        assert broken.exit_code == 1 and "state.json has" in broken.output and "1 of 2 checkpoints are damaged" in broken.output
        assert "damaged: state.json" in truing("runs", run.parent).output
    finally:
        state.write_bytes(text)


def test_a_folder_without_runs(tmp_path):
    assert truing("runs", tmp_path).output == f"no run in {tmp_path}\n"
    assert truing("runs", tmp_path / "none").exit_code == 2
    assert "holds no checkpoint" in truing("verify", tmp_path).output


@pytest.fixture
def last(tmp_path):
    """Return a run that ends with the first step that is left out."""
    prepare_folder(tmp_path)
    run = make_run(tmp_path, "run", dtype="float32", max_steps=4, max_skipped_steps=1)
    run.wrapped.train()
    return run


def end_of(run):
    """Return what a step says that is the last of too many left out."""
    error = train_step(run).ends_for
    assert "steps in a row were left out, the last one: " in error
    return error


def test_an_fp16_overflow_is_not_kept_and_its_error_names_no_replay(last):
    last.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    last.accelerator._optimizers.clear()
    last.state.optimizer = last.accelerator.prepare(last.state.optimizer.optimizer)
    error = end_of(last)
    assert "not finite: gradient. The weights are those of step 0" in error
    assert error.endswith("or look at the samples named above") and not last.run_dir.skipped.exists()


def test_in_fp16_the_step_after_one_left_out_is_as_any(last, monkeypatch):
    """The scaler notes that it has unscaled a gradient until it is updated, which a step does that is taken."""
    scaler = last.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    last.accelerator._optimizers.clear()
    last.state.optimizer = last.accelerator.prepare(last.state.optimizer.optimizer)
    clip, judged = last.accelerator.clip_grad_norm_, iter([["loss"], []])

    def unscale_and_clip(*arguments):  # accelerate does so on a GPU
        scaler.unscale_(last.state.optimizer.optimizer)
        return clip(*arguments)

    monkeypatch.setattr(last.accelerator, "clip_grad_norm_", unscale_and_clip)
    monkeypatch.setattr("truing.train.step.judge", lambda run, finite, norm: next(judged))
    before = {name: weight.clone() for name, weight in last.state.weights().items()}
    assert "not finite: loss" in end_of(last)
    assert all(weight.equal(before[name]) for name, weight in last.state.weights().items())
    train_step(last)
    assert not all(weight.equal(before[name]) for name, weight in last.state.weights().items())
    assert scaler.get_scale() == 8.0


@pytest.mark.parametrize("bad", [torch.tensor([1.0, torch.nan]), [1.0, [float("inf")]], float("nan")], ids=str)
def test_a_methods_state_that_is_not_finite_is_not_taken_over(last, monkeypatch, bad):
    said = []
    monkeypatch.setattr(last.reporter, "warn", said.append)
    take_state(last, {"mean": 1.0, "name": "a", "many": [1.0]})
    take_state(last, {"mean": 2.0, "name": "b", "many": bad})
    assert last.state.loss_state == {"mean": 1.0, "name": "a", "many": [1.0]}
    assert said == ["step 1: the state that dpo returned is not finite; it goes on with the one before"]


def test_a_step_that_the_disk_does_not_take_costs_its_record_alone(last, monkeypatch):
    monkeypatch.setattr("truing.train.step.judge", lambda run, finite, norm: ["gradient"])
    assert end_of(last).endswith(f"; truing replay {last.run_dir.path} 1 computes one again")

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    said = []
    monkeypatch.setattr(last.reporter, "warn", said.append)
    assert "truing replay" not in end_of(last)
    assert said[-1].startswith("step 1 cannot be kept for replay: OSError: [Errno 28] No space left")


def test_a_step_left_out_again_after_a_resume_is_replayed_with_the_weights_of_the_new_course(tmp_path, monkeypatch):
    """Step 3 of both; the second has another learning rate."""
    monkeypatch.setattr("truing.train.step.judge", lambda run, finite, norm: ["gradient"] if run.state.step == 2 else [])
    config, run = write_config(tmp_path, max_steps=3, save_steps=1), tmp_path / "run"
    assert truing("train", config).exit_code == 0
    first = loss_of_replay(run)
    done = truing("train", config, "--resume", run / "checkpoints/step-00000001", "trainer.learning_rate=0.1")
    assert done.exit_code == 0, done.output
    logged = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert loss_of_replay(run) == pytest.approx(logged[2], rel=1e-4)
    assert abs(logged[2] - first) > 0.01


def test_a_step_is_computed_again_by_the_settings_that_it_had(tmp_path, monkeypatch):
    """A resume may change them, and what it writes down."""
    monkeypatch.setattr("truing.train.step.judge", lambda run, finite, norm: ["gradient"] if run.state.step == 2 else [])
    config, run = write_config(tmp_path, max_steps=3, save_steps=3), tmp_path / "run"
    assert truing("train", config).exit_code == 0
    before = loss_of_replay(run)
    done = truing("train", config, "method.beta=5", "--resume")
    assert done.exit_code == 0, done.output
    assert "beta: 5" in (run / "config.yaml").read_text() and loss_of_replay(run) == before


def loss_of_replay(run):
    done = truing("replay", run, 3)
    assert done.exit_code == 0, done.output
    return float(re.search(r"computed again: loss ([-\d.e]+)", done.output)[1])


@pytest.fixture
def keeps(last):
    """Return a function that keeps a step, counted from 1, as the process does that a run is in, or one that resumes it."""

    def keep(step, *, resumed=False):
        nonlocal last
        if resumed:
            last = attrs.evolve(last, run_dir=RunDir(last.run_dir.path))
        last.state.step, last.state.skipped_in_a_row = step - 1, 1
        assert keep_skipped(last, ["gradient"], last.source.trees(last), random_state())
        return last.run_dir.skipped

    return keep


def weights_in(folder):
    return [int(path.stem.removeprefix("weights-")) for path in sorted(folder.glob("weights-*"))]


def test_the_weights_that_were_written_last_stay_whatever_their_step(keeps):
    folder = keeps(5)
    for step in (6, 7):
        shutil.copy(folder / "weights-00000005.safetensors", folder / f"weights-{step:08d}.safetensors")
    for age, step in enumerate((7, 6, 5)):
        os.utime(folder / f"weights-{step:08d}.safetensors", (age - 10**6, age - 10**6))
    keeps(1, resumed=True)
    assert weights_in(folder) == [1, 5, 6]
    keeps(3)
    assert weights_in(folder) == [1, 3, 5]


def test_a_torn_file_of_a_killed_process_is_written_anew(keeps):
    folder = keeps(1)
    torn = folder / "weights-00000001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (folder / ".writing-weights-00000002.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"weights-00000001\.safetensors has [\d,]+ bytes instead of [\d,]+; it is not as"):
        read_skipped(folder, 1)
    keeps(1, resumed=True)
    assert read_skipped(folder, 1).weights == torn
    assert [path.name for path in folder.glob(".*")] == []


class Killed(BaseException):
    """Stands for a signal: nothing that is done about errors is done about it."""


def killed_in(write, real=os.write):
    """Return what does half of a write, counted from 1, and none after it."""
    calls = itertools.count(1)

    def half(file, data):
        call = next(calls)
        if call > write:
            raise Killed
        return real(file, data[: len(data) // 2] if call == write else data)

    return half


def test_a_kill_in_any_write_leaves_the_step_whole_or_not_there(keeps, monkeypatch):
    folder = keeps(1)
    before = read_skipped(folder, 1)
    for write in itertools.count(1):
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", killed_in(write))
                keeps(1, resumed=True)
            break
        except Killed:
            load_file(folder / "weights-00000001.safetensors")
            with pytest.raises(ConfigError, match="step 1 is not among the steps that .* left out, which are none"):
                read_skipped(folder, 1)
    assert write > 20
    assert read_skipped(folder, 1).trees == before.trees


def test_weights_that_are_not_kept_any_more_are_told_of(skipping, tmp_path):
    run = shutil.copytree(skipping[0], tmp_path / "run")
    (weights,) = (run / "skipped").glob("weights-*")
    (step,) = (run / "skipped").glob("step-*")
    weights.unlink()
    done = truing("replay", run, int(step.name[-8:]))
    assert done.exit_code == 0 and "its weights are not kept, of which only the newest are" in done.output


@attrs.define(slots=False)
class Some:
    """The parts of a run that the guard reads."""

    skip_spikes: float | None = 4.0
    recent_norms: list[float] = attrs.Factory(list)
    num_processes: int = 1

    @property
    def trainer(self):
        return self

    state = accelerator = trainer

    def moments(self):
        return []


def test_a_spike_is_one_against_the_good_steps_before_it():
    """Norms of 1 and e alternate: log-norms have mean 0.5 and deviation 0.51, and 0.5 + 4 x 0.51 = 2.55 is log(12.8)."""
    run = Some()
    for step in range(ENOUGH):
        assert judge(run, {}, torch.tensor(2.718281828 ** (step % 2))) == []
    assert judge(run, {}, torch.tensor(15.0)) == ["spike"]
    assert judge(run, {}, torch.tensor(11.0)) == []
    assert len(run.recent_norms) == ENOUGH + 1  # the spike is not among them
    assert judge(attrs.evolve(run, skip_spikes=None), {}, torch.tensor(1e9)) == []


def test_what_is_not_finite_is_named():
    bad, good = torch.tensor(False), torch.tensor(True)
    assert judge(Some(), {"loss": bad, "log-probabilities": good}, torch.tensor(float("inf"))) == ["loss", "gradient"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_element_of_the_optimisers_state_is_found(value, dtype):
    """Whatever else there is: nothing at all, or the largest number that the type has."""
    good = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0], dtype=dtype)
    run, norm = Some(), torch.tensor(1.0)
    run.moments = lambda: [torch.tensor(1.0), torch.empty(0), good]
    assert judge(run, {}, norm) == []
    for place in range(3):
        bad = good.clone()
        bad[place] = value
        run.moments = lambda bad=bad: [bad, good]
        assert judge(run, {}, norm) == ["optimiser's state"]
