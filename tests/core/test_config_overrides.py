"""Overrides from the command line, and interpolation."""

from __future__ import annotations

import time

import pytest

from tests.core.config_fakes import DPO, ONLINE, failure, load
from truing.config.interpolation import interpolate
from truing.config.overrides import override
from truing.config.reading import read_text


def overridden(text: str, *overrides: str):
    document = override(read_text(text, "f"), overrides)
    return document.values, [str(fault) for fault in document.faults]


@pytest.mark.parametrize(
    ("text", "override_", "values"),
    [
        ("trainer: {seed: 1}", "trainer.seed=2", {"trainer": {"seed": 2}}),
        ("a: 1", "trainer.learning_rate=1e-5", {"a": 1, "trainer": {"learning_rate": 1e-5}}),
        ("method: dpo", "method.beta=0.2", {"method": {"name": "dpo", "beta": 0.2}}),
        ("method: {name: dpo, beta: 1}", "method=ipo", {"method": "ipo"}),
        ("data: {path: a}", "data.path=b", {"data": {"path": "b"}}),
        ("data: {path: a}", "data.0.path=b", {"data": {"path": "b"}}),
        ("data: {path: a}", "data.0={path: c}", {"data": {"path": "c"}}),
        ("data: [{path: a}, {path: b}]", "data.1.path=c", {"data": [{"path": "a"}, {"path": "c"}]}),
        ("data: {format: x}", "data.format.field=f", {"data": {"format": {"name": "x", "field": "f"}}}),
        ("data: [{format: x}]", "data.0.format.field=f", {"data": [{"format": {"name": "x", "field": "f"}}]}),
        ("rewards: [x, y]", "rewards.1.weight=2", {"rewards": ["x", {"name": "y", "weight": 2}]}),
        ("rewards: x", "rewards.0.weight=2", {"rewards": {"name": "x", "weight": 2}}),
        ("a: {b: 1}", "a.b=", {"a": {"b": None}}),
        ("a: null", "a.b=[x, no, 1]", {"a": {"b": ["x", "no", 1]}}),
        ("a: 1", "a=train[:10%]", {"a": "train[:10%]"}),
        ("a: 1", "a=b=c", {"a": "b=c"}),
    ],
)
def test_one_override(text, override_, values):
    assert overridden(text, override_) == (values, [])


@pytest.mark.parametrize(
    ("text", "override_", "message"),
    [
        ("a: 1", "a", "command line: 'a' is not an override; write key=value, such as trainer.learning_rate=1e-5"),
        ("a: 1", "=1", "command line: '=1' is not an override"),
        ("a: 1", "a..b=1", "command line: 'a..b=1' is not an override"),
        ("a: 1", "a." * 999 + "a=1", "command line: 'a.a.a."),
        ("a: {b: 4}", "a.b.c=1", "command line: a.b is 4, which has no key 'c'; to replace it, write a.b=..."),
        ("output: {dir: x}", "output.dir.y=1", "command line: output.dir is 'x', which has no key 'y'; to replace it"),
        (
            "data: [{path: a}]",
            "data.1.path=c",
            "command line: data is a list with entries 0 to 0, and '1' is none of them; say which",
        ),
        (
            "data: [{path: a}]",
            "data.path=c",
            "command line: data is a list with entries 0 to 0, and 'path' is none of them; say which, ",
        ),
        (
            "data: []",
            "data.0.path=c",
            "command line: data is a list with no entries, and '0' is none of them; say which, such as data.0=",
        ),
        ("a: 1", "a=[1", "command line: the value '[1' of a cannot be read: not YAML: while parsing a flow sequence"),
        ("a: 1", "a={b: 1, b: 2}", "command line: the value '{b: 1, b: 2}' of a cannot be read: b is given twice"),
    ],
)
def test_an_override_that_cannot_be(text, override_, message):
    (fault,) = overridden(text, override_)[1]
    assert fault.startswith(message)


def test_later_overrides_win_and_the_document_is_left_alone():
    document = read_text("method: {name: dpo}", "f")
    assert override(document, ["method.beta=1", "method.beta=2"]).values == {"method": {"name": "dpo", "beta": 2}}
    assert document.values == {"method": {"name": "dpo"}}


def test_overrides_reach_the_configuration(tmp_path):
    config = load(tmp_path, DPO, "trainer.learning_rate=1e-5", "method.beta=0.2", "data.0.path=x", "model.adapter.r=8")
    assert (config.trainer.learning_rate, config.method.beta, config.data[0].path, config.model.adapter.r) == (1e-5, 0.2, "x", 8)


def test_faults_of_overrides_are_placed_on_the_command_line(tmp_path):
    assert failure(tmp_path, DPO, "trainer.learning_rte=1", "optimizer.lr=1", "trainer.seed=1.5") == (
        "3 faults:\n"
        "  command line: optimizer is not a known key; did you mean trainer.optimizer?\n"
        "  command line: trainer.learning_rte is not a known key; did you mean 'learning_rate'?\n"
        "  command line: trainer.seed must be an int, got 1.5"
    )


def interpolated(text: str):
    document = interpolate(read_text(text, "f"))
    return document.values, [str(fault) for fault in document.faults]


def test_interpolation_of_keys_of_the_environment_and_of_each_other(monkeypatch):
    monkeypatch.setenv("TRUING_TEST_HOME", "/h")
    values, faults = interpolated(
        "a: ${b.c}/x\nb: {c: '${oc.env:TRUING_TEST_HOME}', d: '${.c}'}\ne: ${oc.env:TRUING_NOT_SET,3}\nf: ${b}\ng: ${n}\nn: 5"
    )
    assert values == {"a": "/h/x", "b": {"c": "/h", "d": "/h"}, "e": "3", "f": {"c": "/h", "d": "/h"}, "g": 5, "n": 5}
    assert faults == []


def test_a_backslash_keeps_a_dollar_brace():
    assert interpolated("a: 'x \\${b}'\nb: $c") == ({"a": "x ${b}", "b": "$c"}, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  b: ${c}", "f:2: a.b: '${c}' cannot be resolved: Interpolation key 'c' not found; \\${ stands for a plain ${"),
        ("a: ${oc.env:TRUING_NOT_SET}", "f:1: a: '${oc.env:TRUING_NOT_SET}' cannot be resolved: KeyError raised while resolving"),
        ("a: ${now:x}", "f:1: a: '${now:x}' cannot be resolved: Unsupported interpolation type now"),
        ("a: ${", "f:1: a: '${' cannot be resolved: no viable alternative at input '${'"),
        ("a: ${a}", "f:1: a: '${a}' cannot be resolved: Recursive interpolation detected"),
    ],
)
def test_an_interpolation_that_cannot_be_resolved(text, message):
    values, (fault,) = interpolated(text)
    assert fault.startswith(message)
    assert "${" not in str(values)


def test_circles_are_refused():
    values, faults = interpolated("a: ${b}\nb: ${c}\nc: ${a}")
    assert values == {"a": None, "b": None, "c": None}
    assert len(faults) == 3


DOUBLING = "a0: xxxxxxxxxx\n" + "".join(f"a{n}: ${{a{n - 1}}}${{a{n - 1}}}\n" for n in range(1, 60))
LISTS = "a0: [x, x]\n" + "".join(f"a{n}:\n" + f"  - ${{a{n - 1}}}\n" * 9 for n in range(1, 9))
MANY = "".join(f"a{n}: ${{b}}\n" for n in range(201))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DOUBLING, "refers to itself, or to something that is never resolved"),
        (LISTS, "interpolations make more than 1,000 values; refer to smaller parts"),
        ("a0: " + "x" * 60_000 + "\na1: ${a0}${a0}", "f:2: a1: the interpolated text is longer than 100,000 characters"),
        (MANY, "f: more than 200 interpolations ${...}; write the values"),
    ],
)
def test_interpolations_that_multiply_are_refused_quickly(text, message):
    start = time.process_time()
    faults = interpolated(text)[1]
    assert any(message in fault for fault in faults)
    assert time.process_time() - start < 2


def test_interpolation_sees_overrides(tmp_path):
    config = load(tmp_path, DPO, "model.name=m", "output.dir=runs/${model.name}")
    assert str(config.output.dir) == "runs/m"


def test_an_online_configuration_is_overridden(tmp_path):
    config = load(tmp_path, ONLINE, "rewards.1.limit=3", "rollout.num_generations=2", "data.1.weight=1")
    assert (config.rewards[1].reward.limit, config.rollout.num_generations, config.data[1].weight) == (3, 2, 1.0)
