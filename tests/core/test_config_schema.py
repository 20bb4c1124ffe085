"""The JSON Schema accepts what loads and refuses typos, wrong types and values out of range."""

from __future__ import annotations

import copy
import random

import jsonschema
import pytest

from tests.core.config_fakes import DPO, ONLINE, REGISTRY, load
from tests.core.test_config_typos import edited, keys, siblings, with_typo
from truing.config import dump_config
from truing.config.reading import read_text
from truing.config.schema import json_schema
from truing.registry import Registry

SCHEMA = json_schema(REGISTRY)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_it_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(json_schema(Registry.from_modules({})))


@pytest.mark.parametrize("text", [DPO, ONLINE])
def test_the_examples_and_their_resolved_forms_are_accepted(tmp_path, text):
    VALIDATOR.validate(read_text(text, "f").values)
    VALIDATOR.validate(read_text(dump_config(load(tmp_path, text)), "f").values)


@pytest.mark.parametrize(
    "change",
    [
        "method: {name: dpo, loss_type: [ipo, sigmoid], groups: {a: 1}, clip_range: [0.5, 2]}",
        "method: grpo",
        "rewards: brevity",
        "rewards: [{name: brevity, weight: null}, mine.short, {name: mine.short, weight: 2}]",
        "rollout: null",
        "trainer: null",
        "trainer: {report_to: wandb, seed: null}",
        "data: {data_files: x.json, format: {name: user.columns, field_chosen: best}}",
        "data: [{path: x}, {path: y, format: null}]",
    ],
)
def test_accepted(change):
    VALIDATOR.validate({**read_text(DPO, "f").values, **read_text(change, "f").values})


@pytest.mark.parametrize(
    "change",
    [
        "method: dpoo",
        "method: {beta: 1}",
        "method: {name: dpo, beta: 0}",
        "method: {name: grpo, loss_type: ipo}",
        "method: {name: dpo, loss_type: [ipo, sigmod]}",
        "method: null",
        "rewards: [brevty]",
        "rewards: [{name: brevity, weight: heavy}]",
        "rollout: vlm",
        "trainer: {batch_size: 3.7}",
        "trainer: {warmup_ratio: 2}",
        "trainer: {mixed_precision: yes}",
        "data: {path: x, format: preferense}",
        "data: [{path: x, format: 3}]",
        "output: out",
        "base_dir: x",
    ],
)
def test_refused(change):
    assert not VALIDATOR.is_valid({**read_text(DPO, "f").values, **read_text(change, "f").values})


def test_typos_are_refused():
    values = read_text(ONLINE, "f").values
    places = list(keys(values))
    random_ = random.Random(3)
    for _ in range(100):
        path = random_.choice(places)
        typo = edited(str(path[-1]), random_)
        assert typo in siblings(values, path) or not VALIDATOR.is_valid(with_typo(copy.deepcopy(values), path, typo))


def test_every_key_has_its_help_and_its_default():
    trainer = SCHEMA["$defs"]["TrainerConfig"]["properties"]
    assert trainer["learning_rate"]["description"] == "Peak learning rate."
    assert trainer["learning_rate"]["default"] == 5e-6
    assert all(entry["description"] for entry in trainer.values())
