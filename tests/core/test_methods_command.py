"""`truing methods`: the table that methods' classes make, piped, as objects, and without what is broken."""

from __future__ import annotations

import json
import sys

import click
import pytest
from click.testing import CliRunner

from tests.core.plugins import site
from truing.cli import main

METHODS = """
from typing import ClassVar

import attrs

from truing import Layout, Loss, Needs, hookimpl


@attrs.frozen(kw_only=True)
class Alone(Loss):
    \"\"\"Compares nothing (Nobody et al. 2024, arXiv:2401.00001), after Somebody.

    It grew from arXiv:1902.12345, and from arXiv:2401.00001.
    \"\"\"

    name: ClassVar[str] = "alone"
    layout: ClassVar[Layout] = Layout.SINGLE
    needs: ClassVar[Needs] = Needs.NOTHING

    def __call__(self, inputs):
        pytest.fail("a method is called by training alone")


@attrs.frozen(kw_only=True)
class Compared(Alone):
    \"\"\"Compares with a reference.\"\"\"

    name: ClassVar[str] = "compared"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.REFERENCE_LOGPS | Needs.VALUES


@attrs.frozen(kw_only=True)
class Asking(Compared):
    \"\"\"Only its settings say what it needs.\"\"\"

    name: ClassVar[str] = "asking"
    layout: ClassVar[Layout] = Layout.LABELED
    strength: float


@hookimpl
def register_loss():
    return [Asking, Compared, Alone]
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.delenv("TRUING_PLUGINS", raising=False)
    with site(tmp_path) as folder:
        folder.install("three", METHODS)
        folder.install("bad", "raise SystemExit(4)")
        yield lambda *args: CliRunner().invoke(main, ["methods", *args])


def test_piped_it_is_one_plain_line_per_method(table):
    result = table()
    assert (result.exit_code, result.stderr) == (0, "")
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert header == ["Method", "Data", "Models", "Memory", "Definition", "Papers"]
    ours = [line for line in lines if line[0] in ("alone", "compared", "asking")]
    assert ours == [
        ["alone", "completions", "policy", "1 x the model", "Compares nothing (Nobody et al. 2024), after Somebody.",
         "arXiv:2401.00001, arXiv:1902.12345"],
        ["compared", "pairs of a chosen and a rejected answer", "policy, reference, value head",
         "2 x the model, 1 x with an adapter", "Compares with a reference.", ""],
        ["asking", "answers with a label, good or bad", "policy, more by its settings", "1 x the model, more by its settings",
         "Only its settings say what it needs.", ""],
    ]  # fmt: skip


def test_json_is_a_list_of_objects(table):
    by_name = {each["name"]: each for each in json.loads(table("--json").stdout)}
    assert by_name["alone"] == {
        "name": "alone",
        "package": "truing-three",
        "data": "completions",
        "models": "policy",
        "memory": "1 x the model",
        "definition": "Compares nothing (Nobody et al. 2024), after Somebody.",
        "papers": ["2401.00001", "1902.12345"],
    }


def test_on_a_terminal_it_is_a_table(table, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main.main(["methods"], standalone_mode=False)
    output = click.unstyle(capsys.readouterr().out)
    assert "│ compared" in output and "Compares with" in output and "\t" not in output
    assert all(len(line) <= 160 for line in output.splitlines())
