"""`truing plugins`: the table, the plain lines, the objects, and --check."""

from __future__ import annotations

import json
import sys

import click
import pytest
from click.testing import CliRunner

import truing
from tests.core.plugins import PLUGIN_WITH_COMMAND, PLUGIN_WITH_DIALECT, site
from truing.cli import main


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.delenv("TRUING_PLUGINS", raising=False)
    monkeypatch.setenv("TRUING_BLOCK_PLUGINS", "blocked")
    with site(tmp_path) as folder:
        folder.install("good", version="2.5")
        folder.install("bad", "raise SystemExit(4)")
        folder.install("blocked")
        yield folder


def run(*args: str):
    return CliRunner().invoke(main, ["plugins", *args])


def test_piped_it_is_one_plain_line_per_plugin(installed):
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert header == ["Distribution", "Version", "Plugin", "Hooks", "Names", "Status"]
    assert ["truing-good", "2.5", "good", "register_loss", "methods: good", "ok"] in lines
    by_plugin = {line[2]: line for line in lines}
    assert by_plugin["bad"][5].startswith("broken: cannot be imported (SystemExit: 4); reinstall or uninstall truing-bad")
    assert by_plugin["blocked"][5] == "blocked: TRUING_BLOCK_PLUGINS names it; take it out of there to load it"
    assert by_plugin["core"][:2] == ["truing", truing.__version__]


def test_commands_are_listed(installed):
    installed.install("serving", PLUGIN_WITH_COMMAND)
    assert "truing-serving\t1.0\tserving\tregister_command\tcommands: serve-dummy\tok\n" in run().stdout


def test_dialects_are_listed(installed):
    installed.install("reading", PLUGIN_WITH_DIALECT)
    assert "truing-reading\t1.0\treading\tregister_dialect\tdialects: tuner\tok\n" in run().stdout


def test_json_is_a_list_of_objects(installed):
    objects = {each["name"]: each for each in json.loads(run("--json").stdout)}
    assert objects["good"] == {
        "name": "good",
        "dist": "truing-good",
        "version": "2.5",
        "hooks": ["register_loss"],
        "names": {"loss": ["good"]},
        "commands": [],
        "problem": None,
        "status": "ok",
    }
    assert objects["bad"]["status"] == "broken"
    assert objects["blocked"]["status"] == "blocked"


def test_check_exits_3_when_one_is_broken(installed, monkeypatch):
    result = run("--check")
    assert result.exit_code == 3
    assert result.stderr == "error: broken: plugin 'bad' (truing-bad 1.0); the list above says why\n"
    monkeypatch.setenv("TRUING_BLOCK_PLUGINS", "blocked,bad")
    assert run("--check").exit_code == 0


def test_on_a_terminal_it_is_a_table_and_the_problems_follow(installed, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main.main(["plugins"], standalone_mode=False)
    table, _, problems = click.unstyle(capsys.readouterr().out).partition("└")
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "Hooks" not in table
    assert "methods: good" in table
    assert "│ broken" in table
    assert "cannot be imported" not in table
    assert "plugin 'bad' (truing-bad 1.0) is broken: cannot be imported (SystemExit: 4)" in " ".join(problems.split())
