"""Writing a configuration: loading what was written gives an equal one."""

from __future__ import annotations

import string
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.config_fakes import DPO, ONLINE, Brevity, Pairs, load
from truing.config import RewardEntry, dump_config
from truing.config.interpolation import interpolate
from truing.config.reading import read_text
from truing.loss import Layout

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'\\${}#:- 10eE.~"), max_size=30)
AWKWARD = st.sampled_from(
    ["no", "null", "1e3", "0o7", "1_000", "", "~", "- a", "a: b", "${b}", "\\${b}", "\\\\${", "true", " x ", "=", "<<", "*a"]
)
FLOATS = st.floats(0, 1e300, exclude_min=True)


@pytest.mark.parametrize("text", [DPO, ONLINE])
def test_round_trip_of_the_examples(tmp_path, text):
    config = load(tmp_path, text)
    assert load(tmp_path, dump_config(config)) == config


def test_every_key_is_written_and_nothing_else(tmp_path):
    written = read_text(dump_config(load(tmp_path, DPO)), "f").values
    assert list(written) == ["recipe", "method", "model", "data", "eval_data", "rollout", "rewards", "trainer", "output"]
    assert written["trainer"]["save_steps"] is None
    assert written["data"][0]["format"] == "preference"
    assert written["method"]["name"] == "dpo"


def test_functions_are_written_by_name(tmp_path):
    (tmp_path / "mine.py").write_text("def pairs(cfg, dataset_idx=0): ...\ndef short(prompt, response): ...\n")
    config = load(
        tmp_path,
        ONLINE,
        "rewards=[{name: mine.short, weight: 2}]",
        "method=dpo",
        "rollout=",
        "rewards=",
        "data.0.format=mine.pairs",
        "data.1.format=preference",
        "eval_data=",
    )
    assert read_text(dump_config(config), "f").values["data"][0]["format"] == "mine.pairs"
    assert load(tmp_path, dump_config(config)) == config


@given(
    name=TEXT | AWKWARD,
    template=st.none() | TEXT | AWKWARD,
    modules=st.lists(TEXT | AWKWARD, max_size=3),
    beta=FLOATS,
    groups=st.dictionaries(TEXT | AWKWARD, st.integers(-(10**17), 10**17), max_size=3),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**32 - 1),
    output=st.text(string.ascii_letters + "/. ${}\\", min_size=1, max_size=9),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, name, template, modules, beta, groups, weight, seed, output):
    base = load(tmp_path, DPO, "model.adapter.r=2")
    assert base.method.layout is Layout.PAIRED
    config = attrs.evolve(
        base,
        method=Pairs(beta=beta, groups=groups),
        model=attrs.evolve(
            base.model, name=name, chat_template=template, adapter=attrs.evolve(base.model.adapter, target_modules=tuple(modules))
        ),
        trainer=attrs.evolve(base.trainer, seed=seed, num_epochs=beta),
        output=attrs.evolve(base.output, dir=Path(output)),
    )
    assert load(tmp_path, dump_config(config)) == config
    rewarded = dump_config(attrs.evolve(config, rewards=(RewardEntry(reward=Brevity(), weight=weight),)))
    shared = {"weight": weight, "timeout": 60.0, "on_error": "mask", "max_error_rate": 0.5}
    assert read_text(rewarded, "f").values["rewards"] == [{"name": "brevity", "limit": 200, **shared}]
    assert interpolate(read_text(rewarded, "f")).faults == []
