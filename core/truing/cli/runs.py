"""`truing runs`: the runs below a folder, how far they are, and whether they can be resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click


@attrs.frozen(kw_only=True)
class RunFacts:
    """What can be said of a run without loading it."""

    run: str
    method: str
    step: int
    """Of the last line of the log."""
    checkpoint: int | None
    """The step of the newest checkpoint."""
    state: str
    """`verified`, `damaged` with the reason, or that there is none."""
    model: bool
    """Whether the trained model is there."""
    bytes: int
    running: str | None
    """The process that writes there."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("output"))
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.option("--quick", is_flag=True, help="Compare sizes only: do not read the checkpoints.")
def runs(folder: Path, as_json: bool, quick: bool) -> None:
    """List the runs in FOLDER (output by default): steps, newest checkpoint, whether it is whole, size."""
    from truing.errors import ConfigError

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give one with runs in it, such as output")
    found = [_facts(path, quick=quick) for path in find_runs(folder)]
    if as_json:
        click.echo(json.dumps([attrs.asdict(facts) for facts in found], indent=2))
    elif not found:
        click.echo(f"no run in {folder}")
    else:
        _print(found)


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders at and below `folder` that a run has written to, in the order of their names."""
    from truing.train.run_dir import CONFIG, METRICS

    if (folder / CONFIG).is_file() and ((folder / METRICS).exists() or (folder / "checkpoints").exists()):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from find_runs(path)


def _facts(path: Path, *, quick: bool) -> RunFacts:
    from truing.train.checkpoint import DamagedError, step_of, verify
    from truing.train.checkpoint.files import size_of_folder
    from truing.train.run_dir import RunDir

    run_dir = RunDir(path)
    checkpoints = run_dir.store.checkpoints()
    state = "no checkpoint"
    if checkpoints:
        try:
            verify(checkpoints[-1], contents=not quick)
            state = "right sizes" if quick else "verified"
        except DamagedError as error:
            state = f"damaged: {error}"
    return RunFacts(
        run=str(path),
        method=_method(path),
        step=_last_step(run_dir.metrics()),
        checkpoint=step_of(checkpoints[-1]) if checkpoints else None,
        state=state,
        model=run_dir.model.exists(),
        bytes=size_of_folder(path),
        running=run_dir.owner(),
    )


def _last_step(lines: bytes) -> int:
    for line in reversed(lines.splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # a line that a kill cut
            continue
    return 0


def _method(path: Path) -> str:
    from truing.config.reading import read_file
    from truing.errors import ConfigError
    from truing.train.run_dir import CONFIG

    try:
        method: Any = read_file(path / CONFIG).values.get("method")
    except ConfigError:
        return "?"
    return str(method.get("name", "?") if isinstance(method, dict) else method)


def _print(found: list[RunFacts]) -> None:
    rows = [("Run", "Method", "Step", "Checkpoint", "State", "Model", "Size", "Running"), *map(_row, found)]
    if not sys.stdout.isatty():
        click.echo("\n".join("\t".join(row) for row in rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row, facts in zip(rows[1:], found, strict=True):
        table.add_row(*row, style="red" if facts.state.startswith("damaged") else None)
    Console(markup=False, highlight=False).print(table)


def _row(facts: RunFacts) -> tuple[str, ...]:
    checkpoint = "-" if facts.checkpoint is None else str(facts.checkpoint)
    model, running = "yes" if facts.model else "no", facts.running or "no"
    return facts.run, facts.method, str(facts.step), checkpoint, facts.state, model, f"{facts.bytes / 1e6:.1f} MB", running
