"""Dialects: `truing convert`, and check_dialect for those who write one."""

from __future__ import annotations

import inspect
import json
import textwrap
import types

import pytest
from click.testing import CliRunner

from tests.core.config_fakes import Pairs
from tests.core.plugins import Tuner, module, variant
from truing import ConfigError, PluginError, hookspecs
from truing.cli import main
from truing.config import build_config, load_config
from truing.dialect import translated_yaml
from truing.registry import Registry
from truing.testing import check_dialect

GOOD = Tuner()
VALUES = {
    "algorithm": "dpo",
    "kl": 0.2,
    "checkpoint": "org/model-${version}",
    "data": {"file": "pairs.jsonl"},
    "lr": 5e-6,
    "save_to": "no",
}


def with_dialects(*dialects: type) -> Registry:
    return Registry.from_modules({"fakes": module(register_loss=[Pairs], register_dialect=list(dialects))})


def translated_by(function) -> type:
    """A dialect whose `translate` is this function."""
    return variant(Tuner, translate=lambda self, values: function(values))


def failing(values):
    raise KeyError("kl")


@pytest.fixture
def convert(monkeypatch, tmp_path):
    """Run `truing convert` in an empty folder with tuner.yaml in it, with the dialects that are given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuner.yaml").write_text(json.dumps(VALUES, indent=2))

    def run(*args, dialects=(Tuner,)):
        monkeypatch.setattr(Registry, "load", classmethod(lambda cls, **_: with_dialects(*dialects)))
        return CliRunner().invoke(main, ["convert", *args])

    return run


def fails(result, exit_code: int, message: str) -> None:
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr


def test_what_is_printed_is_accepted_and_says_the_same(convert, tmp_path):
    result = convert("tuner", "tuner.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("method:\n  name: dpo\n  beta: 0.2\nmodel:\n")
    (tmp_path / "ours.yaml").write_text(result.stdout)
    registry = with_dialects(Tuner)
    loaded = load_config(tmp_path / "ours.yaml", registry=registry)
    assert loaded == build_config(GOOD.translate(VALUES), registry=registry, base_dir=tmp_path)
    assert (loaded.model.name, str(loaded.output.dir), loaded.trainer.learning_rate) == ("org/model-${version}", "no", 5e-6)


def test_yaml_is_read_as_json_is(convert, tmp_path):
    (tmp_path / "other.yaml").write_text(
        "algorithm: dpo\nkl: 0.2\ncheckpoint: org/model-${version}\ndata:\n  file: pairs.jsonl\nlr: 5e-6\nsave_to: no  # text\n"
    )
    assert convert("tuner", "other.yaml").stdout == convert("tuner", "tuner.yaml").stdout


def test_it_writes_a_file_and_overwrites_none(convert, tmp_path):
    result = convert("tuner", "tuner.yaml", "-o", "ours.yaml")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "ours.yaml").read_text() == convert("tuner", "tuner.yaml").stdout
    (tmp_path / "ours.yaml").write_text("mine")
    fails(
        convert("tuner", "tuner.yaml", "-o", "ours.yaml"),
        2,
        "error: ours.yaml exists, and is not overwritten; remove it, or choose another name\n",
    )
    assert (tmp_path / "ours.yaml").read_text() == "mine"
    fails(convert("tuner", "tuner.yaml", "-o", "no/ours.yaml"), 2, "error: cannot write no/ours.yaml: No such file or directory\n")


def test_functions_are_looked_for_where_the_result_will_lie(convert, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.py").write_text("def rows(cfg, dataset_idx=0):\n    pass\n")
    dialect = translated_by(lambda values: {**GOOD.translate(values), "data": {"path": "pairs.jsonl", "format": "mine.rows"}})
    fails(convert("tuner", "tuner.yaml", dialects=[dialect]), 2, "mine.rows")
    assert convert("tuner", "tuner.yaml", "-o", "there/ours.yaml", dialects=[dialect]).exit_code == 0


def test_keys_that_cannot_be_translated_are_all_named(convert, tmp_path):
    values = {**VALUES, "warmth": 1, "data": {"file": "a", "rows": 2}}
    (tmp_path / "tuner.yaml").write_text(json.dumps(values))
    fails(convert("tuner", "tuner.yaml"), 2, "error: tuner.yaml: cannot translate warmth, data.rows; the keys that can be are")


def test_every_fault_of_the_result_is_reported(convert, tmp_path):
    (tmp_path / "tuner.yaml").write_text(json.dumps({**VALUES, "kl": -1, "lr": "fast"}))
    result = convert("tuner", "tuner.yaml")
    fails(result, 2, "error: tuner.yaml: what dialect 'tuner' makes of it is not a valid configuration: 2 faults:\n")
    assert "method.beta must be > 0" in result.stderr
    assert "trainer.learning_rate must be" in result.stderr
    (tmp_path / "tuner.yaml").write_text(json.dumps({**VALUES, "algorithm": "grpo"}))
    fails(convert("tuner", "tuner.yaml"), 3, "method 'grpo' is not installed; install its plugin with: pip install truing-grpo")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "tuner.yaml is empty; its top level must be a mapping of the other tool's keys"),
        ("[]", "tuner.yaml is a list; its top level must be a mapping"),
        ("3", "tuner.yaml is one value; its top level must be a mapping"),
        ("lr: 1\nlr: 2", "tuner.yaml:2: lr is given twice, here and in line 1; remove one"),
        ("lr: !!python/name:os 1", "tuner.yaml:1: the tag"),
    ],
)
def test_files_that_are_refused(convert, tmp_path, text, says):
    (tmp_path / "tuner.yaml").write_text(text)
    fails(convert("tuner", "tuner.yaml"), 2, f"error: {says}")


def test_a_file_that_is_not_there(convert):
    fails(convert("tuner", "none.yaml"), 2, "error: cannot read the configuration none.yaml: No such file or directory")


def test_dialects_that_are_not_there(convert):
    fails(convert("tunr", "tuner.yaml"), 3, "error: unknown dialect 'tunr'; did you mean 'tuner'? Installed: tuner\n")
    fails(
        convert("tuner", "tuner.yaml", dialects=[]),
        3,
        "error: no dialect is installed, so 'tuner' cannot be read; a plugin registers one with the hook register_dialect\n",
    )
    broken = variant(Tuner, translate=None)
    fails(
        convert("tuner", "tuner.yaml", dialects=[broken]), 3, "dialect 'tuner' is not available: plugin 'fakes' (dummy) is broken"
    )


@pytest.mark.parametrize(
    ("dialect", "says"),
    [
        (
            translated_by(failing),
            "dialect 'tuner' failed (KeyError: 'kl'); report it to its authors: `truing plugins` says which distribution",
        ),
        (translated_by(lambda values: [values]), "dialect 'tuner' returned list; `translate` returns a mapping"),
        (translated_by(lambda values: {**values, "rewards": [print]}), "dialect 'tuner' returned what YAML cannot hold: "),
    ],
)
def test_dialects_that_fail(convert, dialect, says):
    fails(convert("tuner", "tuner.yaml", dialects=[dialect]), 3, f"error: tuner.yaml: {says}")
    with pytest.raises(PluginError):
        translated_yaml(dialect(), VALUES, registry=with_dialects())


@pytest.mark.parametrize("dialect", [Tuner, Tuner(format="preference")])
def test_a_good_dialect_passes_the_check(dialect):
    check_dialect(dialect, VALUES, registry=with_dialects())


def test_the_hooks_example_passes_the_check():
    example = types.ModuleType("example")
    code = textwrap.dedent(inspect.getdoc(hookspecs.register_dialect).split("Example:")[1])
    exec(compile(code, "example", "exec", dont_inherit=True), vars(example))
    [dialect] = example.register_dialect()
    assert Registry.from_modules({"example": example}).get("dialect", "tuner") is dialect
    values = {"algorithm": "dpo", "kl": 0.2, "checkpoint": "m", "pairs": "a.jsonl", "lr": 1e-6, "save_to": "o"}
    assert set(values) == set(example.KEYS)
    check_dialect(dialect, values, registry=with_dialects())


def changing(values):
    values["lr"] = float(values["lr"]) + 1
    return GOOD.translate(values)


def counting(values, calls=[]):  # noqa: B006  # it is meant to remember
    calls.append(1)
    return {**GOOD.translate(values), "trainer": {"seed": len(calls)}}


def dropping(values):
    return GOOD.translate({key: values[key] for key in VALUES})


def dropping_nested(values):
    return GOOD.translate({**values, "data": {"file": values["data"]["file"]}})


def naming_one(values):
    unknown = next((key for key in values if key not in VALUES), None)
    if unknown:
        raise ConfigError(f"cannot translate {unknown}")
    return GOOD.translate(values)


def looking_up(values):
    return GOOD.translate({key: VALUES[key] for key in values})


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        (variant(Tuner, name="Tuner"), "the registry would refuse this plugin: class Tuner: the name 'Tuner' is not allowed"),
        (Tuner(format="preferense"), "Tuner.translate does not make a valid configuration of .*unknown format 'preferense'"),
        (translated_by(failing), r"does not make a valid configuration .*failed \(KeyError: 'kl'\)"),
        (translated_by(changing), "Tuner.translate changes the values that it is given; copy them first"),
        (translated_by(counting), "Tuner.translate makes two configurations of the same values when it is called twice"),
        (translated_by(dropping), "Tuner.translate drops key_of_no_tool, nor_this of .*; raise truing.ConfigError"),
        (
            translated_by(dropping_nested),
            "Tuner.translate drops key_of_no_tool, nor_this of .*'data': {'file': 'pairs.jsonl', 'key_of_no_tool': 1",
        ),
        (
            translated_by(naming_one),
            "Tuner.translate refuses .* without naming nor_this: 'cannot translate key_of_no_tool'; raise truing.ConfigError",
        ),
        (translated_by(looking_up), "Tuner.translate fails on .* with KeyError: 'key_of_no_tool'; raise truing.ConfigError"),
    ],
)
def test_the_check_names_the_promise_that_is_broken(dialect, message):
    with pytest.raises(AssertionError, match=message):
        check_dialect(dialect, dict(VALUES), registry=with_dialects())
