"""Pairs for a method of labels: every format of pairs feeds KTO, each pair as a desirable and an undesirable sample."""

from __future__ import annotations

import json

import attrs
import pytest
from click.testing import CliRunner

from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing import Example, Layout, RowError, align
from truing.cli import main
from truing.config import DataConfig, TrainerConfig, build_config, checked, dump_config
from truing.data import prepare
from truing.data.ranked import RankedPairs
from truing.data.strategies import Preference, PreferenceLabels, Unpaired
from truing.data.unpair import takes_apart, unpair
from truing.errors import ConfigError
from truing.registry import Registry
from truing.testing import tiny_tokenizer
from truing_chatml import FORMATS

REGISTRY = Registry.load(quiet=True)
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
PROMPT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
DESIRABLE, UNDESIRABLE = "sample{} desirable: the chosen side of a pair", "sample{} undesirable: the rejected side of a pair"
ROWS = {
    "chatml": PAIR,
    "chatml.icr": {"input": "q", "chosen": "a", "rejected": "b"},
    "llama3.default": {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
    "hh_rlhf": {side: f"\n\nHuman: q\n\nAssistant: {answer}" for side, answer in (("chosen", "a"), ("rejected", "b"))},
    "passthrough": PAIR,
    "ranked": {"prompt": "q", "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}]},
    "zephyr.nectar": {"prompt": "q", "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}]},
    "chat_template.argilla": {
        side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        for side, answer in (("chosen", "a"), ("rejected", "b"))
    },
}
ASKED = {
    "chatml.intel": {"question": "q", "chosen": "a", "rejected": "b"},
    "llama3.argilla": {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "user_defined": PAIR,
}


def config_of(folder, rows, method="kto", **data):
    return build_config(
        {
            "method": method,
            "model": {"name": "m"},
            "data": {"path": str(write_rows(folder / "rows.jsonl", rows)), **data},
            "output": {"dir": "o"},
        },
        registry=REGISTRY,
    )


def read(config):
    dataset, report = prepare(
        config.data,
        layout=config.method.layout,
        tokenizer=tiny_tokenizer(),
        trainer=TrainerConfig(),
        context_length=None,
        base_dir=config.base_dir,
    )
    tokenizer = tiny_tokenizer()
    samples = [dataset[index] for index in range(len(dataset))]
    return [
        (tokenizer.decode(list(s.prompt_ids)), tokenizer.decode(list(s.branches[0].token_ids)), s.branches[0].label)
        for s in samples
    ], report


@pytest.mark.parametrize("name", ROWS)
def test_a_format_without_labels_is_taken_apart_of_itself(tmp_path, name):
    config = config_of(tmp_path, [ROWS[name]] * 2, format=name)
    samples, report = read(config)
    assert [label for *_, label in samples] == [True, False] * 2
    assert samples[0][1].startswith("a") and samples[1][1].startswith("b") and samples[0][0] == samples[1][0]
    lines = report.lines()
    assert lines[0].startswith("2 rows read as 4 samples, 4 kept")
    assert {"2 " + DESIRABLE.format("s"), "2 " + UNDESIRABLE.format("s")} <= set(lines)
    assert build_config(_plain(config), registry=REGISTRY) == config


def _plain(config):
    from io import StringIO

    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(StringIO(dump_config(config)))


@pytest.mark.parametrize("name", ASKED)
def test_a_format_with_labels_of_its_own_is_asked_to(tmp_path, name):
    with pytest.raises(Exception, match=r"column|last message"):
        read(config_of(tmp_path, [ASKED[name]], format=name))
    config = config_of(tmp_path, [ASKED[name]], format=name, unpair=True)
    samples, report = read(config)
    assert [label for *_, label in samples] == [True, False]
    assert samples[0][1].startswith("a") and samples[1][1].startswith("b")
    assert "1 " + DESIRABLE.format("") in report.lines()
    assert build_config(_plain(config), registry=REGISTRY) == config
    assert checked(config, registry=REGISTRY) == config


def test_datasets_of_pairs_and_of_labels_go_together(tmp_path):
    labels = str(write_rows(tmp_path / "labels.jsonl", [{"prompt": "q", "completion": "c", "label": 0}]))
    config = config_of(tmp_path, [ASKED["chatml.intel"]])
    both = attrs.evolve(
        config,
        data=(
            DataConfig(path=labels, format=Unpaired()),
            DataConfig(path=config.data[0].path, format=_format("chatml.intel"), unpair=True),
        ),
    )
    samples, report = read(checked(both, registry=REGISTRY))
    assert [label for *_, label in samples] == [False, True, False]
    assert report.lines()[0].startswith("2 rows read as 3 samples, 3 kept")


def _format(name, layout=Layout.PAIRED):
    return next(cls() for cls in FORMATS if cls.name == name and layout in cls.layouts)


def test_the_text_and_the_notes_are_those_of_the_pair():
    pair = _format("chatml").parse({**PAIR, "input": "r", "margin": 2})
    chosen, rejected = unpair(pair)
    assert (chosen.prompt, chosen.responses, chosen.label, chosen.margin) == (PROMPT, ("a<|im_end|>",), True, None)
    assert (rejected.prompt, rejected.responses, rejected.label) == (PROMPT, ("b<|im_end|>",), False)
    assert chosen.turn_end == rejected.turn_end == "<|im_end|>"
    assert chosen.notes == ("column 'prompt' read, though there is 'input' too", DESIRABLE.format("(s)"))
    assert rejected.notes == (UNDESIRABLE.format("(s)"),), "what is of the row is counted once"
    assert [side.label for side in PreferenceLabels().parse(PAIR)] == [True, False]
    with pytest.raises(RowError, match="a pair has two responses, the row gives 1"):
        unpair(Example(prompt="q", responses=("a",)))
    assert takes_apart(Preference.layouts, Layout.LABELED) and not takes_apart(Preference.layouts, Layout.SINGLE)
    assert not takes_apart(Unpaired.layouts, Layout.LABELED, asked=True)


def test_where_it_makes_no_sense_it_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"data\.unpair is only for methods of single responses with labels \(kto\), and dpo is none"
    ):
        config_of(tmp_path, [PAIR], method="dpo", format="preference", unpair=True)
    with pytest.raises(ConfigError, match="format 'unpaired' is for the layouts labeled, not paired"):
        config_of(tmp_path, [PAIR], format="unpaired", unpair=True)
    with pytest.raises(ConfigError, match="format 'text' is for the layouts rollout, single, not labeled"):
        config_of(tmp_path, [PAIR], format="text")
    with pytest.raises(ConfigError, match=r"data\.unpair must be true or false, got the string 'true'"):
        config_of(tmp_path, [PAIR], format="preference", unpair="true")


def test_rows_of_pairs_are_recognised(tmp_path):
    save_tiny_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", [ROWS["hh_rlhf"]])
    asked = write_rows(tmp_path / "asked.jsonl", [{**ASKED["sharegpt"], "label": True}])
    config = {"method": "kto", "model": {"name": str(tmp_path / "model")}, "data": {"path": str(rows)}, "output": {"dir": "o"}}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    shown = CliRunner().invoke(main, ["preview", str(tmp_path / "run.yaml")])
    assert "format: hh_rlhf, chosen by the columns 'chosen', 'rejected'" in shown.output
    assert "1 " + UNDESIRABLE.format("") in shown.output
    shown = CliRunner().invoke(main, ["preview", str(tmp_path / "run.yaml"), f"data.path={asked}", "data.unpair=true"])
    assert "format: sharegpt, chosen by" in shown.output and "1 " + UNDESIRABLE.format("") in shown.output


def test_rows_in_memory_and_ranked_answers_train(tmp_path):
    save_tiny_model(tmp_path / "model")
    rows = [
        {"prompt": row["prompt"], "answers": [{"answer": row["chosen"], "rank": 0}, {"answer": row["rejected"], "rank": 1}]}
        for row in preferences(8)
    ]
    state = align(
        model=str(tmp_path / "model"),
        dataset=rows,
        method="kto",
        format=RankedPairs(pairs="all"),
        output_dir=tmp_path / "run",
        max_steps=1,
        batch_size=8,
    )
    assert state.step == 1
