"""truing.align: the whole way from rows to a trained model, in process."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import truing
from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing.model import flash_cpu
from truing.registry.first_party import FIRST_PARTY
from truing.testing import tiny_model, tiny_tokenizer


def run(folder, **options):
    tokenizer = tiny_tokenizer()
    defaults = {
        "model": tiny_model(tokenizer),
        "tokenizer": tokenizer,
        "dataset": preferences(),
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "output_dir": folder,
    }
    return truing.align(**{**defaults, **options})


def losses(state):
    return [line["loss"] for line in state.history if "loss" in line]


def weights(state):
    return {name: weight.detach().clone() for name, weight in state.model.named_parameters()}


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_canonical_signature(tmp_path):
    """The loss starts at ln 2 and falls, accuracy and margin rise."""
    state = run(tmp_path / "run", num_epochs=4, eval_dataset=preferences()[:8])
    first, last = state.history[0], state.metrics
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.3
    assert last["rewards/accuracies"] == 1
    assert last["eval_rewards/accuracies"] == 1
    assert last["rewards/chosen"] > 0 > last["rewards/rejected"]
    assert (state.step, state.epoch) == (24, 4.0)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == state.history
    assert all({"step", "epoch"} <= line.keys() for line in lines)
    assert {
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "padding_fraction",
        "shared_prefix_savings",
        "memory/peak_mb",
    } <= first.keys()


def test_the_saved_model_is_the_trained_one(tmp_path):
    state = run(tmp_path / "run")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert same_weights(dict(saved.named_parameters()), weights(state))
    assert "aligned with dpo by Truing" in (tmp_path / "run/model/README.md").read_text()


@pytest.mark.parametrize("dataset", ["file", "rows", "Dataset"])
@pytest.mark.parametrize("model", ["folder", "loaded"])
def test_models_and_datasets_of_every_kind_train_the_same(tmp_path, model, dataset):
    rows = preferences()
    given = {"file": str(write_rows(tmp_path / "rows.jsonl", rows)), "rows": rows, "Dataset": Dataset.from_list(rows)}[dataset]
    folder = save_tiny_model(tmp_path / "model")
    loaded = {"model": str(folder), "tokenizer": None} if model == "folder" else {}
    state = run(tmp_path / "run", dataset=given, max_steps=2, **loaded)
    assert losses(state)[-1] == pytest.approx(0.687, abs=0.2)
    assert losses(state) == losses(run(tmp_path / "again", max_steps=2))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("options", [{"adapter": {"type": "lora", "r": 4}}, {}], ids=["lora", "full"])
def test_reference_once_beforehand_gives_the_same_numbers(tmp_path, options, precision):
    tokenizer = tiny_tokenizer()
    save_tiny_model(tmp_path / "model")
    curves = []
    for precompute in (False, True):
        config = truing_config(tmp_path, f"run-{precompute}", precompute, options, precision)
        curves.append(losses(truing.align(config=config, tokenizer=tokenizer)))
    # under bf16 a product of 8 bits of mantissa depends on which trees share a row
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=0, atol=1e-5 if precision == "no" else 5e-3)
    assert curves[1][0] == pytest.approx(math.log(2), abs=1e-6 if precision == "no" else 1e-3)
    assert curves[0][-1] < curves[0][0]


def test_a_later_run_finds_the_reference_of_an_earlier_one(tmp_path, cache, capsys):
    save_tiny_model(tmp_path / "model")
    curves, said = [], []
    for name in ("first", "second"):
        curves.append(losses(truing.align(config=truing_config(tmp_path, name, True, {}, "no"))))
        said.append(capsys.readouterr().out)
    assert "reference: computing log-probabilities of 24 rows" in said[0]
    (kept,) = (cache / "references").iterdir()
    assert f"reference: log-probabilities of 24 rows found in {kept}" in said[1]
    assert curves[0] == curves[1]


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "file"))
    save_tiny_model(tmp_path / "model")
    truing.align(config=truing_config(tmp_path, "run", True, {}, "no"))
    assert "reference: not kept for later runs" in capsys.readouterr().out


def truing_config(folder, name, precompute, options, precision):
    from truing.config import build_config
    from truing.registry import Registry

    values = {
        "method": "dpo",
        "model": {"name": str(folder / "model"), "precompute_reference": precompute, **options},
        "data": {"path": str(write_rows(folder / "rows.jsonl", preferences())), "format": "preference"},
        "trainer": {"learning_rate": 1e-3, "logging_steps": 1, "num_epochs": 2, "mixed_precision": precision},
        "output": {"dir": str(folder / name)},
    }
    return build_config(values, registry=Registry.load())


def test_lora_trains_the_adapter_only_and_saves_it(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state = run(tmp_path / "run", model=model, tokenizer=tokenizer, adapter={"type": "lora", "r": 4}, num_epochs=2)
    assert losses(state)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(state)[-1] < 0.65
    base = {name.replace(".base_layer", ""): weight for name, weight in state.model.get_base_model().named_parameters()}
    assert all(torch.equal(base[name], weight) for name, weight in before.items())
    assert all("lora" in name for name in load_file(tmp_path / "run/model/adapter_model.safetensors"))


def test_libraries_warn_each_other_in_silence(tmp_path, recwarn, monkeypatch):
    """peft asks transformers what is deprecated there, and torch minds the schedule of a run whose first step is skipped."""
    run(tmp_path / "run", adapter={"type": "lora", "r": 4}, max_steps=1)
    monkeypatch.setattr("truing.train.step.judge", lambda run, finite, norm: ["gradient"])
    assert run(tmp_path / "skipped", max_steps=1).skipped_steps == 1
    assert not [str(warning.message) for warning in recwarn]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = run(tmp_path / "plain", max_steps=3)
    recomputed = run(tmp_path / "recomputed", max_steps=3, gradient_checkpointing=True)
    assert same_weights(weights(plain), weights(recomputed))


def test_padded_and_shared_prefix_agree(tmp_path):
    shared, padded = (run(tmp_path / forward, forward=forward) for forward in ("shared_prefix", "padded"))
    torch.testing.assert_close(torch.tensor(losses(shared)), torch.tensor(losses(padded)), rtol=0, atol=1e-4)
    assert shared.metrics["padding_fraction"] == 0 < padded.metrics["padding_fraction"]
    assert padded.metrics["shared_prefix_savings"] == 0 < shared.metrics["shared_prefix_savings"] < 0.5


def test_ipo_is_a_method_of_its_own(tmp_path):
    """At the start the loss is 1 / (4 beta^2) = 25 for beta 0.1."""
    assert losses(run(tmp_path / "run", method="ipo", max_steps=1))[0] == pytest.approx(25, rel=1e-5)


def test_bf16_trains(tmp_path):
    state = run(tmp_path / "run", mixed_precision="bf16", num_epochs=3)
    assert losses(state)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(state)[-1] < 0.5


def test_a_method_s_fields_are_arguments(tmp_path):
    state = run(tmp_path / "run", beta=0.3, label_smoothing=0.1, max_steps=1)
    assert "beta: 0.3" in (state.output_dir / "config.yaml").read_text()


def test_a_float_probability_of_dropout_is_turned_off_too(tmp_path):
    """OPT keeps its dropout as a plain number in each layer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, architecture="opt", dropout=0.5, ffn_dim=64, word_embed_proj_dim=32)
    state = run(tmp_path / "run", model=model, tokenizer=tokenizer, max_steps=1)
    assert losses(state)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_half_precision_weights_are_warned_of(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    run(tmp_path / "run", model=tiny_model(tokenizer, dtype=torch.bfloat16), tokenizer=tokenizer, max_steps=1)
    assert "weights that train are bfloat16, in which small updates are lost" in capsys.readouterr().out


def test_a_notebook_shows_a_state_in_a_line(tmp_path):
    state = run(tmp_path / "run", max_steps=1)
    assert repr(state) == (
        f"TrainState(model=<LlamaForCausalLM>, tokenizer=<{type(state.tokenizer).__name__}>, "
        f"output_dir={state.output_dir!r}, step=1, epoch={state.epoch}, "
        "skipped_in_a_row=0, skipped_steps=0)"
    )


def test_the_model_comes_back_ready_to_use(tmp_path):
    state = run(tmp_path / "run", max_steps=1, gradient_checkpointing=True)
    assert not state.model.training
    assert not state.model.is_gradient_checkpointing


def test_a_loaded_model_that_was_trained_is_no_place_to_resume_from(tmp_path):
    """Its weights would become the reference."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    run(tmp_path / "run", model=model, tokenizer=tokenizer, max_steps=2)
    with pytest.raises(truing.ConfigError, match="a run with other starting weights"):
        run(tmp_path / "run", model=model, tokenizer=tokenizer, max_steps=4, resume=True)


def test_resume_from_an_older_checkpoint_takes_its_own_course(tmp_path):
    """Later checkpoints of the course that is left are neither resumed from nor counted by save_total_limit."""
    run(tmp_path / "run", save_steps=2)
    older = tmp_path / "run/checkpoints/step-00000002"
    resumed = run(tmp_path / "run", save_steps=2, save_total_limit=2, learning_rate=1e-2, resume=str(older))
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").glob("step-*"))] == ["step-00000004", "step-00000006"]
    saved = load_file(tmp_path / "run/checkpoints/step-00000006/weights.safetensors")
    assert same_weights(saved, weights(resumed))


@pytest.mark.parametrize(
    ("option", "named"), [({"seed": 1}, "seed"), ({"batch_size": 3}, "prompts per step"), ({"method": "ipo"}, "method")]
)
def test_a_changed_run_is_not_resumed(tmp_path, option, named):
    run(tmp_path / "run", max_steps=1)
    with pytest.raises(truing.ConfigError, match=f"a run with other .*{named}"):
        run(tmp_path / "run", max_steps=2, resume=True, **option)


def test_tensorboard_gets_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    state = run(tmp_path / "run", report_to=["tensorboard"], max_steps=2)
    accumulator = EventAccumulator(str(state.output_dir / "truing"))
    accumulator.Reload()
    logged = [event.value for event in accumulator.Scalars("loss")]
    assert logged == pytest.approx(losses(state))


def test_a_tracker_that_cannot_be_started_is_named(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no server at 10.0.0.1")

    monkeypatch.setattr(TensorBoardTracker, "start", fail)
    with pytest.raises(truing.SetupError, match="report_to: tensorboard cannot be started .*no server.*every metric is in metrics"):
        run(tmp_path / "run", report_to=["tensorboard"], max_steps=1)


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_tracker_that_fails_later_costs_a_warning(tmp_path, monkeypatch, capsys, method):
    def fail(*args, **kwargs):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    state = run(tmp_path / "run", report_to=["tensorboard"], max_steps=2)
    assert state.step == 2 and (tmp_path / "run/model/model.safetensors").exists()
    assert "tensorboard may lack metrics (ConnectionError: the server is gone)" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betta": 0.3}, "no argument 'betta'.*did you mean 'beta'"),
        ({"method": "simpo", "gamma": 0.3}, "no argument 'gamma'.*did you mean 'simpo_gamma'"),
        ({"learning_rat": 0.3}, "did you mean 'learning_rate'"),
        ({"tokenizer": None}, "tokenizer must be given too"),
        ({"output_dir": None}, "output"),
        ({"learning_rate": -1.0}, "learning_rate must be >= 0"),
        ({"method": "dpoo"}, "did you mean 'dpo'"),
        ({"method": "absent"}, "pip install truing-absent"),
        ({"method": "ipo", "label_smoothing": 0.1}, "ipo has no label_smoothing"),
        ({"format": "preferense"}, "did you mean 'preference'"),
        ({"adapter": {"type": "lora", "target_modules": ["q_prj"]}}, "its linear modules are .*q_proj"),
        ({"dataset": []}, "0 rows|no rows"),
        ({"dataset": [{"prompt": "a", "chosen": "b"}]}, "rejected"),
        ({"adapter": {"typ": "lora"}}, "did you mean 'type'"),
        ({"adapter": {"type": "lora", "modules_to_save": ["hed"]}}, "this model has no module hed"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"report_to": "wandb"}, r"pip install truing\[wandb\]"),
        ({"model": 3}, "model is a int"),
        ({"method": {"beta": 0.2}}, "mapping without `name`"),
        ({"precompute_reference": True}, "is a key of `model`"),
        ({"dataset": DatasetDict(train=Dataset.from_list([]))}, "mapping of train"),
        ({"dataset": 3}, "dataset is a int; give a path, a hub id, a datasets.Dataset or a list of rows"),
        ({"eval_dataset": 3}, "eval_dataset is a int"),
        ({"dataset": {"prompt": ["a"], "chosen": ["b"]}}, r"mapping of columns; give its rows: dataset=datasets.Dataset.from_dict"),
        ({"tokenizer": "gpt2"}, "tokenizer is a str; give a loaded one"),
        ({"model": tiny_model().requires_grad_(False)}, "no weight of the model trains"),
        ({"model": tiny_model(vocab_size=40)}, "the data has token id"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, options, message):
    monkeypatch.setitem(FIRST_PARTY["loss"], "absent", "truing-absent")
    with pytest.raises(truing.TruingError, match=f"(?s){message}"):
        run(options.pop("output_dir", tmp_path / "run"), **options)


def test_a_directory_of_another_run_is_refused(tmp_path):
    run(tmp_path / "run", max_steps=1)
    with pytest.raises(truing.ConfigError, match="holds another run; continue it with --resume"):
        run(tmp_path / "run", max_steps=1)


def test_no_space_is_said_before_training(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(truing.SetupError, match="the disk has 0 MB free"):
        run(tmp_path / "run", max_steps=1)


def test_a_kernel_that_fails_in_mixed_precision_costs_speed_alone(tmp_path, monkeypatch):
    right = flash_cpu.forward

    def missing_in_bf16(query, *others):
        if query.dtype == torch.bfloat16:
            raise RuntimeError("no such kernel")
        return right(query, *others)

    monkeypatch.setattr(flash_cpu, "forward", missing_in_bf16)
    assert run(tmp_path / "run", mixed_precision="bf16", max_steps=2).step == 2
    said = json.loads((tmp_path / "run/environment.json").read_text())["forward"]
    assert said.startswith("every prompt computed once")
    assert said.endswith("because with flash kernels its code fails (RuntimeError: no such kernel)")


def test_a_format_that_its_columns_say_is_said_aloud_and_written_down(tmp_path, capsys):
    """So that a resume, and a run of that file, read the data alike whatever plugins are there then."""
    rows = preferences()[:8]
    state = run(tmp_path / "run", dataset=rows, eval_dataset=rows)
    said = "format: preference, chosen by the columns 'prompt', 'chosen', 'rejected' of data; set data.format to say otherwise"
    printed = capsys.readouterr()
    assert said in (printed.out + printed.err)
    assert (tmp_path / "run/config.yaml").read_text().count("format: preference") == 2
    assert "(as preference)" in (tmp_path / "run/model/README.md").read_text()
    assert losses(run(tmp_path / "named", dataset=rows, eval_dataset=rows, format="preference")) == losses(state)
    assert run(tmp_path / "run", dataset=rows, eval_dataset=rows, resume=True).step == state.step


def test_columns_that_no_format_knows_are_an_error_with_the_choices(tmp_path):
    with pytest.raises(truing.ConfigError, match=r"data\.format is not set, and no format knows the columns 'a', 'b' for sure"):
        run(tmp_path / "run", dataset=[{"a": "1", "b": "2"}])
