"""A method that reads scores: its head is made, trained, saved, resumed and written, and no logits are computed."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.helpers import write_config
from tests.end_to_end.steps import Scored, make_run, prepare_folder
from truing import LossOutput, ModelError, Needs, PluginError, Term, TruingError
from truing.config import load_config
from truing.model.score_head import VALUE_HEAD, new_score_head, read_score_head
from truing.registry import Registry
from truing.testing import tiny_model
from truing.train.console import Reporter
from truing.train.given import Given
from truing.train.loop import train
from truing.train.run_dir import RunDir
from truing.train.setup import set_up
from truing.train.step import evaluate, train_step

LORA = {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}


def configure(folder, method=None, *, model=None, output="run", **trainer):
    """Return the configuration of `write_config` with a method of our own."""
    path = folder / "config.yaml"
    path = path if path.exists() else write_config(folder)
    config = load_config(path, [f"{key}={json.dumps(value)}" for key, value in (model or {}).items()], registry=Registry.load())
    settings = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, **trainer}
    return attrs.evolve(
        config,
        method=method or Scored(),
        trainer=attrs.evolve(config.trainer, **settings),
        output=attrs.evolve(config.output, dir=folder / output),
    )


def weights(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name} {name}": tensor for name, tensor in load_file(file).items()}
    return found


@pytest.mark.parametrize("model", [{}, {"model.adapter": LORA}], ids=["full", "lora"])
def test_a_head_is_trained_saved_and_resumed_bitwise(tmp_path, model):
    config = configure(tmp_path, model=model)
    state = train(config, reporter=Reporter(quiet=True))
    assert state.score_head.weight.shape == (1, 32) and not state.score_head.training
    started = new_score_head(tiny_model(), torch.float32, config.trainer.seed)
    assert not torch.equal(state.score_head.weight, started.weight)
    written = weights(tmp_path / "run/model")
    assert torch.equal(written[f"{VALUE_HEAD} weight"], state.score_head.weight)
    checkpoint = load_file(tmp_path / "run/checkpoints/step-00000003/weights.safetensors")
    assert checkpoint["score_head.weight"].shape == (1, 32)
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000006")
    shutil.rmtree(tmp_path / "resumed/model")
    resumed = train(configure(tmp_path, model=model, output="resumed"), resume=True, reporter=Reporter(quiet=True))
    assert resumed.step == 6
    again = weights(tmp_path / "resumed/model")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], written[name]) for name in written)


def test_a_half_precision_base_under_an_adapter_has_a_head_that_trains_in_float32(tmp_path):
    state = train(configure(tmp_path, model={"model.dtype": "bfloat16", "model.adapter": LORA}), reporter=Reporter(quiet=True))
    assert state.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert state.score_head.weight.dtype == torch.float32
    assert state.metrics["loss"] > 0


def test_a_model_that_was_saved_with_a_head_starts_from_it(tmp_path, capsys):
    train(configure(tmp_path), reporter=Reporter(quiet=True))
    head = load_file(tmp_path / "run/model" / VALUE_HEAD)["weight"]
    capsys.readouterr()
    config = configure(tmp_path, model={"model.name": str(tmp_path / "run/model")}, output="again")
    with closing(RunDir(config.output.dir)) as run_dir:
        run = set_up(config, Given(), run_dir, resume=False)
    assert torch.equal(run.policy.score_head.weight, head)
    assert f"score head: that of {tmp_path / 'run/model' / VALUE_HEAD}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weight": torch.zeros(1, 8)}, r"holds \{'weight': \(1, 8\)\}; a score head of this model is \{'weight': \(1, 32\)\}"),
        ({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, "'bias'"),
        ({"weight": torch.full((1, 32), torch.nan)}, "the score head is not finite"),
        (None, "cannot be read"),
    ],
)
def test_a_head_of_another_model_is_refused(tmp_path, table, message):
    path = tmp_path / VALUE_HEAD
    path.write_bytes(b"no head")
    if table is not None:
        save_file(table, path)
    with pytest.raises(ModelError, match=message):
        read_score_head(path, tiny_model(), torch.float32)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"], ids=["untied", "tied"])
def test_no_logits_are_computed_and_the_token_head_alone_trains_not(tmp_path, architecture):
    """The probe before training needs them, and is over when the run is made."""
    prepare_folder(tmp_path, architecture=architecture)
    run = make_run(tmp_path, "run", method="scored", dtype="float32", max_steps=2)
    model = run.policy.causal_lm

    def refuse(*_):
        raise AssertionError("the head that predicts tokens ran")

    model.get_output_embeddings().register_forward_pre_hook(refuse)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (architecture == "gpt2")
    assert {name for name, weight in run.policy.named_parameters() if not weight.requires_grad} == (
        set() if tied else {"model.lm_head.weight"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truing.model.policy.score_tokens", refuse)
        patch.setattr("truing.model.policy.fused_loss", refuse)
        before = {name: weight.clone() for name, weight in run.state.weights().items()}
        result = train_step(run)
    assert result.metrics["loss"].isfinite()
    changed = [name for name, weight in run.state.weights().items() if not torch.equal(weight, before[name])]
    assert "score_head.weight" in changed and len(changed) > 10


def test_a_model_with_logits_of_its_own_has_scores_too(tmp_path):
    """They are those of its decoder's output, whatever its logits are."""
    prepare_folder(tmp_path)
    found = []
    for own in (False, True):
        for method in ("scored", "sorted-scores"):
            run = make_run(tmp_path, f"run-{own}-{method}", method=method, eval_rows=True)
            run.policy.own_logits = own
            found.append(evaluate(run))
    assert found[0] == pytest.approx(found[2], abs=1e-12)
    assert found[1] == pytest.approx(found[3], abs=1e-12)


@attrs.frozen(kw_only=True)
class Peeking(Scored):
    """Reads what it said it would not."""

    scope: str = "example"

    def __call__(self, inputs):
        return LossOutput(terms=[Term(inputs.logps * inputs.scores, "sequence")])


@pytest.mark.parametrize("scope", ["example", "step"])
def test_a_loss_that_reads_log_probabilities_all_the_same_never_changes_a_weight(tmp_path, scope):
    config = configure(tmp_path, Peeking(scope=scope), max_tokens_per_batch=64, max_skipped_steps=2)
    with pytest.raises(TruingError, match="2 steps in a row were left out, the last one: not finite: loss"):
        train(config, reporter=Reporter(quiet=True))


def test_scores_that_are_not_finite_are_named(tmp_path):
    prepare_folder(tmp_path)
    run = make_run(tmp_path, "run", method="scored", dtype="float32", max_skipped_steps=1)
    with torch.no_grad():
        run.policy.score_head.weight.fill_(torch.inf)
    assert "1 steps in a row were left out, the last one: not finite: loss, scores, gradient" in train_step(run).ends_for


def test_needs_that_contradict_each_other_are_refused(tmp_path):
    @attrs.frozen(kw_only=True)
    class Both(Scored):
        needs = Needs.SCORES | Needs.NO_LOGPS | Needs.ENTROPY

    with pytest.raises(PluginError, match="names Needs.NO_LOGPS and Needs.ENTROPY, which come of the same head; drop one of them"):
        train(configure(tmp_path, Both()))
