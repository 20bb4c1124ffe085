"""The `truing` program: a click group whose commands are imported only when they are used."""

from __future__ import annotations

import errno
import importlib
import re
import traceback
from collections.abc import Mapping
from typing import Any

import click

import truing
from truing.cli.ranks import failed_before, rank
from truing.cli.streams import without_secrets
from truing.errors import SetupError, TruingError, lacks_memory, system_error
from truing.suggest import did_you_mean

COMMANDS: Mapping[str, str] = {
    "train": "Train as CONFIG says.",
    "check": "Check CONFIG without training: every fault at once, with its line.",
    "preview": "Show the first samples of CONFIG's data, tokenised, and what became of the rows.",
    "runs": "List the runs in FOLDER (output by default): steps, newest checkpoint, whether it is whole, size.",
    "verify": "Read every checkpoint of RUN, or the one that RUN is, and say which are whole.",
    "replay": "Compute again STEP of RUN, one that was left out, and say which sample is to blame.",
    "explain": "Say what a KEY of the configuration, or a plugin, is: type, default, bounds, and where it comes from.",
    "schema": "Print the configuration's JSON Schema, installed plugins included, for completion and checks in editors.",
    "convert": "Print FILE, another tool's YAML or JSON, as a configuration of ours.",
    "methods": "List the methods: the data that each takes, the models that it holds, what it is, and its papers.",
    "plugins": "List the plugins: what they contribute, what is broken and why.",
    "new-plugin": "Write a package truing-NAME with a plugin that is listed, documented and tested.",
}
"""Core's own commands and their one-line help, so that `truing --help` imports none of them."""

INTERRUPTED = 130
_LOST_PEER = re.compile(r"Connection (reset|closed) by peer|remote process exited|NCCL.*(remote|abort)", re.IGNORECASE)
"""How gloo and NCCL say that a process of the group is gone."""

_NO_SPACE = ("no space left on the disk", "free some")
_REFUSALS = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: ("a file is larger than it may be", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the disk is read-only", "mend it"),
}
"""What to say of a disk that does not take a file, and what to do."""


class Program(click.Group):
    """Core's commands, then the plugins'; failures become one clear message and an exit code. Nothing prints a secret."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with without_secrets():
            return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return core's commands in the order of the table, then the plugins' by name."""
        return [*COMMANDS, *_plugin_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing what it lives in."""
        if cmd_name not in COMMANDS:
            return _plugin_commands().get(cmd_name)
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"truing.cli.{name}"), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with; an unknown one is an error that suggests."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            guess = did_you_mean(args[0], known) or "."
            ctx.fail(f"No such command {args[0]!r}{guess} The commands are {', '.join(known)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' one-line helps, whatever state the plugins are in."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        try:
            commands = _plugin_commands()
        except TruingError as error:
            with formatter.section("Commands of plugins"):
                formatter.write_text(f"none, for the plugins cannot be loaded: {error}")
            return
        if commands:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, command.get_short_help_str(100)) for name, command in commands.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the program's own options; `--debug` may stand anywhere."""
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except (KeyboardInterrupt, click.Abort):
            if failed_before(INTERRUPTED) is None:
                click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            message, exit_code = explain_failure(error)
            first = failed_before(exit_code)
            if ctx.params["debug"]:
                traceback.print_exc()
            if first is None or ctx.params["debug"]:
                # a user's mistake is the same on every rank; memory and the like are those of one
                whose = "" if rank() is None or isinstance(error, TruingError) else f" (rank {rank()})"
                click.secho(f"error{whose}: {message}", fg="red", err=True)
            ctx.exit(exit_code if first is None else first)


def explain_failure(error: Exception) -> tuple[str, int]:
    """Return what to tell the user about an exception, and the exit code."""
    if isinstance(error, TruingError):
        return str(error), error.exit_code
    if lacks_memory(error):
        advice = "lower trainer.max_tokens_per_batch or trainer.max_length, or train an adapter"
        return f"out of memory: {str(error) or 'no more could be had'}; {advice}", SetupError.exit_code
    # by name and text, for torch, safetensors and tokenizers are not imported here and have exceptions of their own
    if type(error).__name__ in {"RuntimeError", "DistBackendError"} and _LOST_PEER.search(str(error)):
        return "another process of this run is gone, for a reason that it or the launcher says; continue with --resume", 1
    refused = system_error(error)
    if refused is not None and refused.errno in _REFUSALS:
        what, advice = _REFUSALS[refused.errno]
        return f"{what}: {error}; {advice}, or write elsewhere (output.dir)", SetupError.exit_code
    return f"internal error, {type(error).__name__}: {error}; run again with --debug for the traceback, and please report it", 1


def _plugin_commands() -> Mapping[str, click.Command]:
    from truing.registry import Registry

    return Registry.load(quiet=True).commands()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(truing.__version__, prog_name="truing")
def main(debug: bool) -> None:
    """Align language models with preferences.

    Start with `truing check` and `truing train` on a YAML file.
    """
