"""Whole runs on a tiny model: it learns, resumes, is asked from the command line and as a reward, and is exported."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import attrs
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import truing
from truing import Completion, ConfigError, Example, ModelError
from truing.cli import main
from truing.model.score_head import new_score_head, write_score_head
from truing.testing import check_reward, fake_context, tiny_model, tiny_tokenizer
from truing_reward_model import RewardModel
from truing_reward_model.export import _set_padding, export
from truing_reward_model.scorer import Scorer

WORDS = ["red", "green", "blue", "seven", "twelve", "a", "of"]
GOOD, BAD = ["yes", "sure", "fine"], ["no", "never", "not"]
LORA = {"r": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}


def some(draw, low, high):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))


def pair_rows(count, seed):
    """The better answer begins with one word of three, the worse with one of three others."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"{some(draw, 1, 5)}: ",
            "chosen": f"{draw.choice(GOOD)} {some(draw, 1, 4)}",
            "rejected": f"{draw.choice(BAD)} {some(draw, 1, 4)}",
        }
        for _ in range(count)
    ]


def ranked_rows(count, seed):
    """Good answers, then those that say nothing, of which there are two, then bad ones."""
    draw = random.Random(seed)
    firsts = [(GOOD, 1), (["well"], 2), (["hm"], 2), (BAD, 3)]
    return [
        {
            "prompt": f"{some(draw, 1, 5)}: ",
            "answers": [{"answer": f"{draw.choice(words)} {some(draw, 1, 4)}", "rank": rank} for words, rank in firsts],
        }
        for _ in range(count)
    ]


def write(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(folder: Path, name="run", *, method="reward-model", rows=None, **options):
    model = folder / "model"
    if not model.exists():
        tokenizer = tiny_tokenizer()
        tiny_model(tokenizer, initializer_range=0.05).save_pretrained(model)
        tokenizer.save_pretrained(model)
    make, layout = (ranked_rows, "ranked") if method == "ranked-reward-model" else (pair_rows, "preference")
    settings = {
        "learning_rate": 3e-3,
        "batch_size": 16,
        "max_steps": 40,
        "eval_dataset": str(write(folder / "eval.jsonl", make(64, 1))),
    }
    data = write(folder / "train.jsonl", rows or make(128, 0))
    return truing.align(
        model=str(model), dataset=str(data), format=layout, method=method, output_dir=folder / name, **{**settings, **options}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    return folder, train(folder)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    return folder, train(folder, adapter=LORA, learning_rate=1e-2)


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def lines_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["trained", "adapted"])
def test_it_orders_pairs_that_it_has_not_seen(request, kind):
    folder, state = request.getfixturevalue(kind)
    assert state.history[0]["loss"] == pytest.approx(0.69, abs=0.1)
    assert state.metrics["eval_accuracy"] >= 0.9, "chance is 0.5, and 64 pairs have a standard deviation of 0.06"
    assert state.metrics["eval_margin"] == pytest.approx(
        state.metrics["eval_rewards/chosen"] - state.metrics["eval_rewards/rejected"]
    )
    head = load_file(folder / "run/model/value_head.safetensors")
    assert list(head) == ["weight"] and torch.equal(head["weight"], state.score_head.weight)


def test_ranked_answers_are_learned_in_order(tmp_path):
    state = train(tmp_path, method="ranked-reward-model", center_rewards_coefficient=0.01, batch_size=8, max_steps=30)
    assert state.metrics["eval_accuracy"] >= 0.9
    scored = run("score", tmp_path / "run", tmp_path / "eval.jsonl")
    assert "of 320 pairs in the right order" in scored.stderr, "5 of 6 pairs are no tie"
    assert all(len(line["scores"]) == 4 for line in lines_of(scored))
    means = torch.tensor([line["scores"] for line in lines_of(scored)]).mean(0).tolist()
    assert means[0] > max(means[1:3]) and min(means[1:3]) > means[3], "in the order that the rows have them in"


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_it_resumes_bitwise(tmp_path, adapter):
    options = {"max_steps": 6, "save_steps": 3, "adapter": adapter}
    whole = train(tmp_path, "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000006")
    shutil.rmtree(tmp_path / "cut/model")
    resumed = train(tmp_path, "cut", resume=True, **options)
    assert torch.equal(resumed.score_head.weight, whole.score_head.weight)
    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]


def test_the_command_scores_every_kind_of_row(trained, tmp_path):
    folder, state = trained
    rows = [
        {"prompt": "red: ", "chosen": "yes a", "rejected": "no of"},
        {"prompt": "red: ", "completion": "yes a"},
        {"prompt": "red: ", "answers": [{"answer": "no of", "rank": 7}, {"answer": "yes a", "rank": 2}]},
        {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "yes a"}]},
        {"question": "red"},
        {"prompt": "red: ", "completion": "x" * 600},
        {"prompt": "red: ", "completion": 3},
    ]
    result = run("score", folder / "run", write(tmp_path / "rows.jsonl", rows))
    assert result.exit_code == 0, result.output
    lines = lines_of(result)
    assert [line["row"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    chosen, rejected = lines[0]["chosen_score"], lines[0]["rejected_score"]
    assert chosen > rejected
    assert lines[1]["score"] == pytest.approx(chosen, abs=1e-5)
    assert lines[2]["scores"] == pytest.approx([rejected, chosen], abs=1e-5), "as the row has them"
    assert isinstance(lines[3]["score"], float)
    assert "columns 'question'; one that can be scored has" in lines[4]["error"]
    assert "tokens, and the model was made for 512" in lines[5]["error"]
    assert "column 'completion' must be text" in lines[6]["error"]
    assert "Loading weights" not in result.stderr, "no bars of other libraries"
    assert "4 rows scored, 3 not used" in result.stderr and f"rows.jsonl:5: {lines[4]['error']}" in result.stderr
    assert "accuracy 1.000 (2 of 2 pairs in the right order)" in result.stderr
    # what training computes for the same text
    tokenizer = state.tokenizer
    ids = tokenizer("red: yes a", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        hidden = state.model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = state.score_head(hidden).item()
    assert chosen == pytest.approx(expected, abs=1e-5)


def test_the_commands_accuracy_is_that_of_the_evaluation(trained, tmp_path):
    folder, state = trained
    result = run("score", folder / "run/model", folder / "eval.jsonl", "--output", tmp_path / "scores.jsonl")
    assert result.stdout == "" and len((tmp_path / "scores.jsonl").read_text().splitlines()) == 64
    assert f"accuracy {state.metrics['eval_accuracy']:.3f} " in result.stderr
    assert len(lines_of(run("score", folder / "run", folder / "eval.jsonl", "--limit", 3))) == 3


def test_what_cannot_be_scored_is_said(trained, tmp_path):
    folder, _ = trained
    nothing = run("score", folder / "run", write(tmp_path / "rows.jsonl", [{"question": "red"}]))
    assert nothing.exit_code == 2 and "no row of" in nothing.stderr
    no_model = run("score", folder / "model", folder / "eval.jsonl")
    assert no_model.exit_code == 2
    assert "is no reward model: there is neither model/value_head.safetensors nor value_head.safetensors in it" in no_model.stderr
    no_place = run("score", folder / "run", folder / "eval.jsonl", "-o", tmp_path / "not/there.jsonl")
    assert no_place.exit_code == 2 and "cannot be written" in no_place.stderr


@pytest.mark.parametrize("kind", ["trained", "adapted"])
def test_the_export_gives_the_same_scores_in_padded_batches(request, kind, tmp_path):
    folder, _ = request.getfixturevalue(kind)
    result = run("export-reward-model", folder / "run", tmp_path / "exported")
    assert result.exit_code == 0, result.output
    assert result.output == f"LlamaForSequenceClassification written to {tmp_path / 'exported'}\n", "no bars of other libraries"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    rows = pair_rows(8, 5)
    texts = [row["prompt"] + row[side] + tokenizer.eos_token for row in rows for side in ("chosen", "rejected")]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        exported = model(**batch).logits.squeeze(-1).tolist()
    scored = run("score", folder / "run", write(tmp_path / "rows.jsonl", rows))
    assert scored.exit_code == 0, scored.output
    assert exported == pytest.approx(
        [line[f"{side}_score"] for line in lines_of(scored) for side in ("chosen", "rejected")], abs=1e-5
    )


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "mistral", "gemma2", "gpt2", "bloom"])
def test_other_models_are_exported_too(tmp_path, architecture):
    """Rows of unequal length, and a head that was not trained."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, architecture=architecture)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_score_head(new_score_head(model, torch.float32, 0).weight, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "exported")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    texts = ["red: yes a<|im_end|>", "red: no of the very many<|im_end|>"]
    batch = AutoTokenizer.from_pretrained(tmp_path / "exported")(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        found = classifier(**batch).logits.squeeze(-1).tolist()
    scorer = Scorer.load(tmp_path / "model", torch.device("cpu"))
    (scores,) = scorer.score(scorer.encode([Example(prompt="red: ", responses=("yes a", "no of the very many"))]))
    assert abs(scores[0] - scores[1]) > 1e-3 and found == pytest.approx(scores, abs=1e-5)


def test_a_pad_token_that_ends_completions_is_replaced(trained, tmp_path):
    """transformers reads the last token that is not the pad token: with the end token for one, that would be the one before."""
    folder, _ = trained
    shutil.copytree(folder / "run/model", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    (said,) = export(tmp_path / "model", tmp_path / "exported")[1:]
    assert said == "pad token: <bos>, because <|im_end|> ends completions"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    texts = ["red: yes a<|im_end|>", "red: no of the very many<|im_end|>"]
    with torch.no_grad():
        found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.squeeze(-1).tolist()
    scorer = Scorer.load(folder / "run", torch.device("cpu"))
    trees = scorer.encode([Example(prompt="red: ", responses=("yes a", "no of the very many"))])
    assert found == pytest.approx(scorer.score(trees)[0], abs=1e-5)


def test_without_another_special_token_only_single_texts_can_be_scored():
    tokenizer = tiny_tokenizer()
    assert _set_padding(tokenizer, len(tokenizer)) == []
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = tokenizer.eos_token
    assert _set_padding(tokenizer, 0) == [
        "no pad token: every special token ends completions, so score one text at a time (batch size 1)"
    ]
    assert tokenizer.pad_token is None


def test_an_export_is_not_written_over_anything_nor_of_what_has_no_classifier(trained, tmp_path, monkeypatch):
    folder, _ = trained
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ConfigError, match="full is not empty; give a new folder"):
        export(folder / "run", tmp_path / "full")

    def refuse(config, **_):
        raise ValueError("Unrecognized configuration class")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", refuse)
    with pytest.raises(ModelError, match="LlamaForCausalLM: transformers has no classifier of sequences for it"):
        export(folder / "run", tmp_path / "new")


def test_it_is_a_reward(trained, tmp_path):
    folder, _ = trained
    prompts = ["red: ", "blue a: ", [{"role": "user", "content": "red"}]]
    completions = [
        Completion(
            request_id=str(index), index=place, prompt_ids=(1,), token_ids=(2,), finish_reason="stop", prompt=prompt, text=text
        )
        for index, prompt in enumerate(prompts)
        for place, text in enumerate(["yes a", "no of seven", ""])
    ]
    settings = RewardModel(model=str(folder / "run"))
    check_reward(settings, completions, tolerance=1e-5)
    context = attrs.evolve(fake_context(tmp_path), config_dir=folder)
    with RewardModel(model="run").open(context) as live:
        scores = live(completions)
        too_long = attrs.evolve(completions[0], text="x" * 600)
        assert live([completions[1], too_long]) == [pytest.approx(scores[1], abs=1e-5), None]
    scored = lines_of(run("score", folder / "run", write(tmp_path / "rows.jsonl", [{"prompt": "red: ", "completion": "yes a"}])))
    assert scores[0] == pytest.approx(scored[0]["score"], abs=1e-5)
    assert scores[0] > scores[1] and scores[3] > scores[4]


def test_an_adapter_says_which_model_it_is_for(adapted, tmp_path):
    folder, _ = adapted
    shutil.copytree(folder / "run/model", tmp_path / "model")
    config = json.loads((tmp_path / "model/adapter_config.json").read_text())
    (tmp_path / "model/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not say which model the adapter is for"):
        Scorer.load(tmp_path / "model", torch.device("cpu"))
