"""Runs whose reference is another model, or follows the policy."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import closing

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

import truing
from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from tests.end_to_end.test_malicious_checkpoints import reseal
from truing import ConfigError, ModelError
from truing.config import build_config
from truing.model.policy import Policy
from truing.model.reference import AdapterOff, Following, FrozenCopy
from truing.registry import Registry
from truing.testing import tiny_model
from truing.train.console import Reporter
from truing.train.given import Given
from truing.train.replay import replay
from truing.train.run_dir import RunDir
from truing.train.saving import _take_over
from truing.train.setup import set_up
from truing.train.step import train_step

LORA = {"type": "lora", "r": 4}
UNTIMED = {"tokens_per_second", "memory/peak_mb", "eval_seconds"}
adapters = pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", preferences())
    return tmp_path


def make(folder, name="run", *, reference="auto", adapter=None, method="dpo", model=(), **trainer):
    values = {
        "method": method,
        "model": {"name": str(folder / "model"), "reference": reference, "adapter": adapter, **dict(model)},
        "data": {"path": str(folder / "rows.jsonl"), "format": "preference"},
        "trainer": {"learning_rate": 1e-3, "logging_steps": 1, "max_steps": 6, **trainer},
        "output": {"dir": str(folder / name)},
    }
    return build_config(values, registry=Registry.load())


def begin(config):
    with closing(RunDir(config.output.dir)) as run_dir:
        run = set_up(config, Given(), run_dir, resume=False, reporter=Reporter(quiet=True))
    run.wrapped.train()
    return run


def weights(state):
    return {name: weight.detach().clone() for name, weight in state.model.named_parameters()}


def history(state):
    return [{key: value for key, value in line.items() if key not in UNTIMED} for line in state.history]


@adapters
def test_a_run_is_what_a_loop_by_hand_gives(folder, adapter):
    """Every 2 of 6 steps, by hand on a copy of the whole model: 0.25 policy + 0.75 reference, weight by weight."""
    reference = {"sync_steps": 2, "mixup_alpha": 0.25}
    state = truing.align(config=make(folder, reference=reference, adapter=adapter))
    run = begin(make(folder, "by-hand", adapter=adapter))
    assert isinstance(run.reference, AdapterOff if adapter else FrozenCopy)
    second = copy.deepcopy(run.policy)
    run = attrs.evolve(run, reference=FrozenCopy(second))
    own, others = dict(run.policy.named_parameters()), dict(second.named_parameters())
    for step in range(1, 7):
        train_step(run)
        run.state.step += 1
        if step % 2 == 0:
            with torch.no_grad():
                for name, weight in others.items():
                    weight.copy_(0.25 * own[name] + 0.75 * weight)
    for name, weight in run.state.model.named_parameters():
        torch.testing.assert_close(weights(state)[name], weight.detach(), rtol=0, atol=1e-5)
    without = truing.align(config=make(folder, "without", adapter=adapter))
    assert [line["rewards/margins"] for line in state.history][:2] == [line["rewards/margins"] for line in without.history][:2]
    assert abs(state.metrics["rewards/margins"]) < 0.9 * abs(without.metrics["rewards/margins"])


@adapters
def test_a_resume_between_two_moves_is_bitwise(folder, adapter):
    """Moves after steps 3, 6 and 9; checkpoints after 5 and 10."""
    config = make(folder, "unbroken", reference={"sync_steps": 3}, adapter=adapter, save_steps=5, max_steps=10)
    unbroken = truing.align(config=config)
    shutil.copytree(folder / "unbroken", folder / "resumed")
    kept = folder / "resumed/checkpoints/step-00000005"
    moved, own = (load_file(kept / f"{name}.safetensors") for name in ("reference", "weights"))
    assert {name.removeprefix("model.") for name in moved} == own.keys()
    assert not any(torch.equal(weight, own[name.removeprefix("model.")]) for name, weight in moved.items())
    for later in ("checkpoints/step-00000010", "model"):
        shutil.rmtree(folder / "resumed" / later)
    resumed = truing.align(config=attrs.evolve(config, output=attrs.evolve(config.output, dir=folder / "resumed")), resume=True)
    assert history(resumed) == history(unbroken)
    expected = weights(unbroken)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())


def test_a_reference_that_is_damaged_is_named(folder, capsys):
    config = make(folder, reference={"sync_steps": 2}, save_steps=3)
    truing.align(config=config)
    file = folder / "run/checkpoints/step-00000006/reference.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    truing.align(config=config, resume=True)
    output = capsys.readouterr().out
    assert "step-00000006 is damaged: reference.safetensors has" in output and "3 of 6 steps done" in output


def test_a_sealed_reference_that_is_another_is_refused_and_changes_nothing(folder):
    config = make(folder, reference={"sync_steps": 2}, max_steps=2)
    truing.align(config=config)
    path = folder / "run/checkpoints/step-00000002"
    run = begin(attrs.evolve(config, output=attrs.evolve(config.output, dir=folder / "again")))
    before = {**run.state.weights(), **run.reference.tensors()}
    before = {name: weight.clone() for name, weight in before.items()}
    found = load_file(path / "reference.safetensors")
    name, weight = next(iter(found.items()))
    for changed, says in ((found | {name: weight[:1]}, " is "), ({"other": weight}, " lacks ")):
        save_file({key: value.contiguous() for key, value in changed.items()}, path / "reference.safetensors")
        reseal(path)
        problem = _take_over(run, path)
        assert problem.startswith("reference") and says in problem
    after = {**run.state.weights(), **run.reference.tensors()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_second_adapter_is_no_part_of_the_model(folder):
    run = begin(make(folder, reference={"sync_steps": 1}, adapter=LORA))
    assert isinstance(run.reference, Following)
    optimised = {id(weight) for group in run.state.optimizer.param_groups for weight in group["params"]}
    assert not optimised & {id(weight) for weight in run.reference.tensors().values()}
    state = truing.align(config=make(folder, "saved", reference={"sync_steps": 1}, adapter=LORA))
    plain = truing.align(config=make(folder, "plain", adapter=LORA))
    assert list(state.model.peft_config) == ["default"]
    names = [load_file(folder / name / "model/adapter_model.safetensors").keys() for name in ("saved", "plain")]
    assert names[0] == names[1]
    assert weights(state).keys() == weights(plain).keys()


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("other", [{"seed": 7}, {"seed": 7, "architecture": "gpt2"}], ids=["same class", "another class"])
def test_another_model_gives_the_reference_its_log_probabilities(folder, adapter, other):
    save_tiny_model(folder / "other", **other)
    run = begin(make(folder, reference={"name": str(folder / "other")}, adapter=adapter))
    trees = [run.trees[index] for index in range(5)]
    batch = run.lay_out(trees)
    assert batch.forward == "shared_prefix"
    expected = FrozenCopy(Policy(tiny_model(**other), "padded")).token_logps(batch)
    torch.testing.assert_close(run.reference.token_logps(batch), expected, rtol=0, atol=1e-4)
    assert (run.policy(batch).tokens.logps - expected).abs().max() > 0.1
    before = {name: weight.clone() for name, weight in run.reference.weights}
    train_step(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.reference.weights)


def test_another_model_may_follow_the_policy(folder):
    """One step, alpha 1/2: the mean of both, of weights that do not train too."""
    save_tiny_model(folder / "other", seed=7)
    run = begin(make(folder, reference={"name": str(folder / "other"), "sync_steps": 1, "mixup_alpha": 0.5}))
    own, other = (dict(model.named_parameters()) for model in (run.policy, run.reference.reference.policy))
    expected = {name: 0.5 * own[name].detach() + 0.5 * other[name] for name in own}
    run.reference.follow(1)
    for name, weight in other.items():
        torch.testing.assert_close(weight.detach(), expected[name])


def test_another_model_can_be_precomputed(folder, monkeypatch):
    monkeypatch.setenv("TRUING_CACHE", str(folder / "cache"))
    save_tiny_model(folder / "other", architecture="gpt2")
    reference = {"name": str(folder / "other")}
    live, taken, own = (
        truing.align(config=make(folder, name, reference=asked, model={"precompute_reference": name != "live"}))
        for name, asked in (("live", reference), ("taken", reference), ("own", "auto"))
    )
    assert [line["loss"] for line in taken.history] == pytest.approx([line["loss"] for line in live.history], abs=1e-5)
    assert abs(taken.history[0]["loss"] - own.history[0]["loss"]) > 0.01


def test_models_that_cannot_be_the_reference_are_refused(folder):
    def refused(message, *, sync_steps=None, **options):
        save_tiny_model(folder / "other", **options)
        with pytest.raises(ModelError, match=message):
            begin(make(folder, reference={"name": str(folder / "other"), "sync_steps": sync_steps}))
        shutil.rmtree(folder / "other")

    refused(r"has a vocabulary of 300 tokens, and the policy one of 260; .* same tokenizer and vocabulary size", vocab_size=300)
    refused(r"was made for 16 positions, and the longest sample has \d\d tokens; set trainer.max_length to 16", max_positions=16)
    refused(
        r"has no weight .*, so it cannot follow the policy; take a model of the same architecture", sync_steps=2, hidden_size=48
    )
    with pytest.raises(ModelError, match=r"model\.reference\.name: '.*nowhere' (cannot be|is not) loaded"):
        begin(make(folder, reference={"name": str(folder / "nowhere")}))


def test_a_sample_longer_than_the_positions_only_with_its_branches_together_is_allowed(folder):
    """Branches of a tree each follow its prompt."""
    longest = max(len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) + 1 for row in preferences())
    together = max(sum(map(len, row.values())) + 2 for row in preferences())
    save_tiny_model(folder / "other", max_positions=longest)
    assert together > longest
    begin(make(folder, reference={"name": str(folder / "other")}))


def test_a_resume_with_another_reference_is_refused(folder):
    save_tiny_model(folder / "other", seed=7)
    save_tiny_model(folder / "third", seed=8)
    truing.align(config=make(folder, reference={"name": str(folder / "other")}, max_steps=2))
    for reference in ({"name": str(folder / "third")}, "auto"):
        with pytest.raises(ConfigError, match=r"belongs to a run with other weights of the reference \("):
            truing.align(config=make(folder, reference=reference, max_steps=4), resume=True)


def test_a_reference_that_has_moved_is_not_forgotten(folder):
    truing.align(config=make(folder, reference={"sync_steps": 1}, max_steps=2))
    with pytest.raises(
        ConfigError, match=r"has a reference that has followed the policy, and here none does; resume with model.ref"
    ):
        truing.align(config=make(folder, max_steps=4), resume=True)


def test_a_reference_that_begins_to_move_at_a_resume_is_where_the_policy_started(folder):
    truing.align(config=make(folder, max_steps=2))
    save = load_file(folder / "run/checkpoints/step-00000002/weights.safetensors")
    resumed = truing.align(config=make(folder, reference={"sync_steps": 50}, max_steps=4), resume=True)
    kept = load_file(folder / "run/checkpoints/step-00000004/reference.safetensors")
    begun = load_file(folder / "model/model.safetensors")
    assert resumed.step == 4
    assert all(torch.equal(kept[f"model.{name}"], begun[name]) for name in save)


def test_weights_that_are_spread_over_processes_cannot_be_followed(folder, monkeypatch):
    monkeypatch.setattr("truing.train.references.is_spread", lambda model: True)
    with pytest.raises(ConfigError, match="cannot follow weights that are spread over processes; use data parallelism"):
        begin(make(folder, reference={"sync_steps": 2}))


def test_a_step_that_was_left_out_is_replayed_with_the_reference_that_it_had(folder, monkeypatch):
    """Steps 4 and 5 are left out; the reference moves after every step, those two included."""
    monkeypatch.setattr("truing.train.step.judge", lambda run, finite, norm: ["gradient"] if run.state.step in (3, 4) else [])
    state = truing.align(config=make(folder, reference={"sync_steps": 1, "mixup_alpha": 0.5}))
    monkeypatch.undo()
    for step in (4, 5):
        again = replay(folder / "run", step, reporter=Reporter(quiet=True))
        assert again.loss == pytest.approx(state.history[step - 1]["loss"], abs=1e-6)
    assert sorted(path.name for path in (folder / "run/skipped").glob("weights-*")) == [
        "weights-00000004.safetensors",
        "weights-00000005.safetensors",
    ]


def test_the_first_lines_say_what_the_reference_is(folder, capsys):
    save_tiny_model(folder / "other", seed=7)
    truing.align(config=make(folder, reference={"name": str(folder / "other"), "sync_steps": 2}, max_steps=1))
    output = capsys.readouterr().out
    assert f"reference: {folder / 'other'}; every prompt computed once" in output
    assert "reference: follows the policy every 2 steps, mixup_alpha 0.6" in output
    assert json.loads((folder / "run/environment.json").read_text())["identity"]["weights of the reference"]
