"""A reward model is asked in the text of the format that it was trained with: from the command line, and as a reward."""

from __future__ import annotations

import json

import attrs
import pytest
from click.testing import CliRunner

from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing import Completion, ConfigError, RowError, align
from truing.cli import main
from truing.testing import fake_context
from truing_chatml import FORMATS
from truing_reward_model import RewardModel


def as_pairs(row):
    return row


def as_intel(row):
    return {"system": "Be kind.", "question": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


def as_transcripts(row):
    return {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}


def as_nectar(row):
    return {
        "prompt": row["prompt"],
        "answers": [
            {"answer": row["rejected"], "rank": 3},
            {"answer": row["chosen"], "rank": 1},
            {"answer": f"well {row['chosen']}", "rank": 2},
        ],
    }


FAMILIES = {
    "chatml.intel": as_intel,
    "llama3.prompt_pairs": as_pairs,
    "hh_rlhf": as_transcripts,
    "preference": as_pairs,
    "ranked": as_nectar,
    "zephyr.nectar": as_nectar,
}


def train(folder, form, *, method="reward-model", make=None, eval_format=None):
    name = form if isinstance(form, str) else form["name"]
    make = make or FAMILIES[name]
    rows = write_rows(folder / "rows.jsonl", [make(row) for row in preferences(24)])
    save_tiny_model(folder / "model", initializer_range=0.3)
    return align(
        model=str(folder / "model"),
        dataset=str(rows),
        eval_dataset=str(rows),
        format=form,
        method=method,
        output_dir=folder / "run",
        max_steps=2,
    )


def score(*arguments):
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def lines_of(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("form", "method"),
    [
        ("chatml.intel", "reward-model"),
        ("llama3.prompt_pairs", "reward-model"),
        ("hh_rlhf", "reward-model"),
        ("preference", "reward-model"),
        ("ranked", "reward-model"),
        ({"name": "zephyr.nectar", "pairs": "all"}, "reward-model"),
        ("ranked", "ranked-reward-model"),
    ],
    ids=str,
)
def test_scores_are_those_of_the_evaluation(tmp_path, form, method):
    state = train(tmp_path, form, method=method)
    result = score(tmp_path / "run", tmp_path / "rows.jsonl")
    lines = lines_of(result)
    assert f"format: {form if isinstance(form, str) else form['name']}, that of" in result.stderr
    assert f"accuracy {state.metrics['eval_accuracy']:.3f} " in result.stderr
    assert not any("error" in line for line in lines)
    pairs = [pair for line in lines for pair in line.get("pairs", [line])]
    if method == "reward-model":
        for side in ("chosen", "rejected"):
            mean = sum(pair[f"{side}_score"] for pair in pairs) / len(pairs)
            assert mean == pytest.approx(state.metrics[f"eval_rewards/{side}"], abs=1e-5)
    else:
        mean = sum(sum(line["scores"]) for line in lines) / sum(len(line["scores"]) for line in lines)
        assert mean == pytest.approx(state.metrics["eval_mean_reward"], abs=1e-5)


def test_pairs_and_single_responses_are_told_by_the_formats_columns(tmp_path):
    train(tmp_path, {"name": "chatml.intel", "field_prompt": "asked"}, make=lambda row: {**row, "asked": row["prompt"]})
    rows = write_rows(
        tmp_path / "some.jsonl",
        [
            {"asked": "red", "chosen": "yes", "rejected": "no"},
            {"asked": "red", "completion": "yes"},
            {"prompt": "red", "completion": "yes"},
            {"asked": "red", "chosen": "yes", "rejected": "yes"},
        ],
    )
    pair, single, other, same = lines_of(score(tmp_path / "run", rows))
    assert single["score"] == pytest.approx(pair["chosen_score"], abs=1e-5)
    assert "column 'asked' is missing" in other["error"] and "a pair needs two different responses" in same["error"]
    # the same as text that is given whole
    text = "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"
    rows = write_rows(tmp_path / "text.jsonl", [{"prompt": text, "completion": "yes<|im_end|>"}])
    result = score(tmp_path / "run", rows, "--format", "text")
    assert "format: text, as --format says" in result.stderr
    assert lines_of(result)[0]["score"] == pytest.approx(single["score"], abs=1e-5)


def test_a_model_outside_of_a_run_is_told_the_format(tmp_path):
    state = train(tmp_path, "chatml.prompt_pairs", make=as_pairs)
    (tmp_path / "run/model").rename(tmp_path / "moved")
    named = score(tmp_path / "moved", tmp_path / "rows.jsonl", "--format", "chatml.prompt_pairs")
    assert f"accuracy {state.metrics['eval_accuracy']:.3f} " in named.stderr
    mean = sum(line["chosen_score"] for line in lines_of(named)) / 24
    assert mean == pytest.approx(state.metrics["eval_rewards/chosen"], abs=1e-5)
    by_columns = score(tmp_path / "moved", tmp_path / "rows.jsonl")
    assert "format: as the columns of each row say, for there is no run's config.yaml" in by_columns.stderr
    assert lines_of(by_columns) != lines_of(named)
    mapped = write_rows(tmp_path / "mapped.jsonl", [{"q": row["prompt"], **row} for row in preferences(24)])
    again = score(tmp_path / "moved", mapped, "--format", "{name: chatml.prompt_pairs, field_prompt: q}")
    assert lines_of(again) == lines_of(named)


def test_a_format_that_cannot_be_is_an_error(tmp_path):
    train(tmp_path, "preference")
    for form, message in {
        "chatml.nitel": "is not in plugin 'chatml'",
        "{name: chatml.intel, field_promt: q}": "format.field_promt is not a known key; did you mean 'field_prompt'?",
        "unpaired": "for the layouts labeled, not paired",
        "{field_prompt: q}": "is a mapping without `name`",
    }.items():
        result = score(tmp_path / "run", tmp_path / "rows.jsonl", "--format", form)
        assert result.exit_code in (2, 3) and message in result.stderr
    config = tmp_path / "run/config.yaml"
    config.write_text("method: reward-model\ndata: [{path: a, format: preference}, {path: b, format: chatml.intel}]\n")
    result = score(tmp_path / "run", tmp_path / "rows.jsonl")
    assert result.exit_code == 2
    assert "its datasets have several, preference, chatml.intel; name another with --format" in result.stderr
    config.write_text("method: reward-model\ndata: {path: a, format: votes}\n")
    result = score(tmp_path / "run", tmp_path / "rows.jsonl")
    assert result.exit_code == 3 and "unknown format 'votes'" in result.stderr and "name another with --format" in result.stderr


def test_a_function_of_the_users_reads_the_rows(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def pairs(cfg, dataset_idx):\n"
        "    assert cfg.trainer.max_steps == 2\n"
        "    return lambda example: {'prompt': 'Q: ' + example['prompt']}\n"
    )
    monkeypatch.chdir(tmp_path)
    state = train(tmp_path, "mine.pairs", make=as_pairs)
    result = score(tmp_path / "run", tmp_path / "rows.jsonl")
    assert f"accuracy {state.metrics['eval_accuracy']:.3f} " in result.stderr
    mean = sum(line["chosen_score"] for line in lines_of(result)) / 24
    assert mean == pytest.approx(state.metrics["eval_rewards/chosen"], abs=1e-5)
    monkeypatch.chdir(tmp_path / "run")
    elsewhere = score(tmp_path / "run", tmp_path / "rows.jsonl")
    assert elsewhere.exit_code == 2 and "no module for 'mine.pairs'" in elsewhere.stderr
    assert len(lines_of(score(tmp_path / "run", tmp_path / "rows.jsonl", "--format", "preference"))) == 24


def completion(prompt, text):
    return Completion(request_id="0", index=0, prompt_ids=(1,), token_ids=(2,), finish_reason="stop", prompt=prompt, text=text)


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        ("chatml.prompt_pairs", "<|im_start|>user\nred: <|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        (
            "llama3.prompt_pairs",
            "<|start_header_id|>user<|end_header_id|>\n\nred: <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
        ("zephyr.nectar", "<|system|>\n</s>\n<|user|>\nred: </s>\n<|assistant|>\n", ""),
        ("hh_rlhf", None, ""),
    ],
)
def test_the_reward_asks_in_the_formats_text(tmp_path, form, before, after):
    """A prompt as messages, as plain text, and as text in the markup already; all of them are what training computed."""
    train(tmp_path, form, make=FAMILIES.get(form, as_pairs))
    row = FAMILIES.get(form, as_pairs)({"prompt": "red: ", "chosen": "yes a", "rejected": "no"})
    (line,) = lines_of(score(tmp_path / "run", write_rows(tmp_path / "one.jsonl", [row])))
    prompts = [[{"role": "user", "content": "red: "}], *([] if before is None else ["red: ", before])]
    completions = [completion(prompt, "yes a") for prompt in prompts]
    completions += [completion(before, "yes a" + after)] if before else []
    context = attrs.evolve(fake_context(tmp_path), config_dir=tmp_path)
    with RewardModel(model="run").open(context) as live:
        assert live(completions) == pytest.approx([line["chosen_score"]] * len(completions), abs=1e-5)
        if before is not None:
            refused = [{"role": "tool", "content": "4"}]
            assert live([completion(refused, "yes"), completions[0]])[0] is None
    (tmp_path / "run/config.yaml").unlink()
    with RewardModel(model="run").open(context) as live:
        assert live([completion("red: ", "yes a")]) != pytest.approx([line["chosen_score"]], abs=1e-5)
    with RewardModel(model="run", format=form).open(context) as live:
        assert live(completions) == pytest.approx([line["chosen_score"]] * len(completions), abs=1e-5)
    with pytest.raises(ConfigError, match="labeled"):
        RewardModel(model="run", format="unpaired").open(context)


def test_a_format_writes_what_it_reads():
    """Text in the markup is not wrapped again, and what the markup has no turn for is refused."""
    (pairs,) = (cls for cls in FORMATS if cls.name == "chatml.argilla_chat" and cls.__name__.endswith("ChatPair"))
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    read = pairs().parse(
        {
            "chosen": [*turns, {"role": "assistant", "content": "s"}],
            "rejected": [*turns, {"role": "assistant", "content": "t"}],
        }
    )
    for prompt in (turns, read.prompt):
        written = pairs().write(prompt, ["s", "t"])
        assert (written.prompt, written.responses, written.turn_end) == (read.prompt, read.responses, read.turn_end)
    with pytest.raises(RowError, match="has the role 'tool'"):
        pairs().write([{"role": "tool", "content": "4"}], ["s"])
