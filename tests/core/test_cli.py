"""The program's frame: lazy commands, one clear message per failure, exit codes."""

from __future__ import annotations

import errno
import importlib
import math
import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import truing
from tests.core.plugins import PLUGIN_WITH_COMMAND, site
from truing import ConfigError, DataError, PluginError
from truing.cli import COMMANDS, main


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.delenv("TRUING_PLUGINS", raising=False)
    monkeypatch.delenv("TRUING_BLOCK_PLUGINS", raising=False)
    with site(tmp_path) as folder:
        yield folder


def run(*args: str):
    return CliRunner().invoke(main, args, prog_name="truing")


def fail_with(monkeypatch, error: BaseException) -> None:
    """Make `truing plugins` raise."""

    @click.command()
    @click.option("--json", is_flag=True)
    def plugins(json):
        raise error

    monkeypatch.setattr(importlib.import_module("truing.cli.plugins"), "plugins", plugins)


def test_help_is_fast_and_imports_nothing_heavy():
    program = (
        "import sys, time, runpy\n"
        "sys.argv = ['truing', '--help']\n"
        "try: runpy.run_module('truing', run_name='__main__')\n"
        "except SystemExit as exit: assert not exit.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'rich', 'numpy'} & set(sys.modules)\n"
        "print(heavy, time.process_time(), file=sys.stderr)"
    )
    # the second is core's; plugins add their own, 13 of them some 0.2 s
    for plugins, most in (("core", 1), (None, math.inf)):
        environment = {**os.environ, **({"TRUING_PLUGINS": plugins} if plugins else {})}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        heavy, seconds = done.stderr.rsplit(maxsplit=1)
        assert heavy == "set()"
        assert float(seconds) < most
        assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_has_each_commands_own_help(name):
    command = main.get_command(click.Context(main), name)
    assert command.name == name
    assert command.get_short_help_str(200) == COMMANDS[name]


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"truing, version {truing.__version__}\n")


def test_an_unknown_command_suggests():
    result = run("chekc", "x.yaml")
    assert result.exit_code == 2
    assert "No such command 'chekc'; did you mean 'check'? The commands are train, check, " in result.stderr
    assert "No such command 'fly'. The commands are train" in run("fly").stderr


def test_an_unknown_option_is_a_usage_error():
    result = run("--hlep")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (ConfigError("no such key"), 2, "error: no such key"),
        (DataError("row 3 is empty"), 2, "error: row 3 is empty"),
        (PluginError("method 'x' is broken"), 3, "error: method 'x' is broken"),
        (MemoryError(), 3, "error: out of memory: no more could be had; lower trainer.max_tokens_per_batch"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            3,
            "error: out of memory: DefaultCPUAllocator: can't allocate",
        ),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 3, "error: out of memory: CUDA out of memory; lower"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.bin"),
            3,
            "error: no space left on the disk: [Errno 28] No space left",
        ),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 3, "error: no space left on the disk: I/O error"),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            3,
            "error: no space left on the disk: [Errno 122] Disk quota exceeded; free some",
        ),
        (
            RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
            3,
            "error: no space left on the disk: Error while serializing: I/O error: Disk quota exceeded",
        ),
        (RuntimeError("I/O error: File too large (os error 27)"), 3, "error: a file is larger than it may be: I/O error: File too"),
        (
            OSError(errno.EROFS, "Read-only file system"),
            3,
            "error: the disk is read-only: [Errno 30] Read-only file system; mend it",
        ),
        (
            ZeroDivisionError("by nought"),
            1,
            "error: internal error, ZeroDivisionError: by nought; run again with --debug for the traceback",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_failures_are_one_message_and_an_exit_code(monkeypatch, error, exit_code, message):
    fail_with(monkeypatch, error)
    result = run("plugins")
    assert result.exit_code == exit_code
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_the_message_is_red_on_a_terminal(monkeypatch):
    fail_with(monkeypatch, ConfigError("no such key"))
    result = CliRunner().invoke(main, ["plugins"], color=True)
    assert result.stderr == "\x1b[31merror: no such key\x1b[0m\n"


@pytest.mark.parametrize("args", [("--debug", "plugins"), ("plugins", "--debug"), ("plugins", "--json", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, args):
    fail_with(monkeypatch, ConfigError("no such key"))
    result = run(*args)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("error: no such key\n")


def test_an_exit_that_a_command_asks_for_is_left_alone(monkeypatch):
    fail_with(monkeypatch, SystemExit(143))
    result = run("plugins")
    assert (result.exit_code, result.stderr) == (143, "")


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m truing plugins --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_plugins_command_is_listed_and_run(installed):
    installed.install("dummy", PLUGIN_WITH_COMMAND)
    of_plugins = run("--help").stdout.partition("Commands of plugins:\n")[2]
    assert re.search(r"^  serve-dummy +Serve dummies\.$", of_plugins, re.M)
    result = run("serve-dummy")
    assert (result.exit_code, result.stdout) == (0, "served\n")
    assert "did you mean 'serve-dummy'" in run("serve-dumy").stderr


def test_help_survives_broken_plugins(installed, monkeypatch):
    installed.install("bad", "raise SystemExit(4)")
    result = run("--help")
    assert (result.exit_code, result.stderr) == (0, "")
    monkeypatch.setenv("TRUING_PLUGINS", "missing")
    result = run("--help")
    assert result.exit_code == 0
    assert "none, for the plugins cannot be loaded: TRUING_PLUGINS names the plugin 'missing'" in " ".join(result.stdout.split())
    assert run("fly").exit_code == 3


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Return a function that makes this the process of a rank under one launcher."""
    monkeypatch.setattr("truing.cli.ranks.GRACE_SECONDS", 0)

    def become(rank):
        (tmp_path / str(rank)).mkdir(exist_ok=True)
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))

    return become


def test_what_every_rank_fails_of_is_said_once(monkeypatch, launched):
    """The second to fail takes the exit code of the first, which is the cause."""
    launched(1)
    fail_with(monkeypatch, ConfigError("no such key"))
    assert run("plugins").stderr == "error: no such key\n"
    launched(0)
    fail_with(monkeypatch, RuntimeError("Connection closed by peer"))
    result = run("plugins")
    assert (result.exit_code, result.stderr) == (2, "")
    assert "error (rank 0): another process of this run is gone" in run("plugins", "--debug").stderr
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run("plugins")
    assert (result.exit_code, result.stderr) == (130, "")


def test_a_failure_of_one_rank_says_which(monkeypatch, launched):
    launched(1)
    fail_with(monkeypatch, MemoryError())
    assert run("plugins").stderr.startswith("error (rank 1): out of memory")


def test_a_launcher_without_a_folder_for_errors_silences_nobody(monkeypatch, launched, tmp_path):
    fail_with(monkeypatch, ConfigError("no such key"))
    launched(0)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone/0/error.json"))
    assert run("plugins").stderr == run("plugins").stderr == "error: no such key\n"
