"""What a run says while it runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from truing.redact import redact

HEARTBEAT_SECONDS = 60.0
SHOWN = ("loss", "accuracy", "rewards/accuracies", "rewards/margins", "reward", "kl", "grad_norm", "learning_rate")
GAP = "  "
"""Between two metrics of a line."""


class Reporter:
    """Prints a run's course, without secrets; silent on every rank but the first. Use as a context manager around the loop."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.total = 0
        self._spoke = time.monotonic()

    def begin(self, done: int, total: int) -> None:
        """Start the bar, on a terminal."""
        self.total = total
        self._spoke = time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, TextColumn("{task.description}"), console=self.console)
            self.progress.add_task("", total=total, completed=done)
            self.progress.start()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def say(self, *lines: str) -> None:
        """Print lines."""
        for line in lines:
            self.console.print(redact(line), markup=False)
        self._spoke = time.monotonic()

    def warn(self, line: str) -> None:
        """Print a line that should be seen."""
        self.console.print(redact(f"warning: {line}"), style="bold yellow", markup=False)
        self._spoke = time.monotonic()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        table = Table(title=redact(title), title_justify="left", show_lines=True)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(redact(cell)) for cell in row))
        self.console.print(table)
        self._spoke = time.monotonic()

    def stepped(self, step: int) -> None:
        """Move the bar; without one, say now and then that the run is alive."""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=step)
        else:
            self.alive(step)

    def alive(self, step: int) -> None:
        """Print a heartbeat when nothing was printed for a minute and there is no bar."""
        silence = time.monotonic() - self._spoke
        if self.progress is None and silence >= HEARTBEAT_SECONDS:
            self.say(f"step {step}/{self.total}: still running, {silence:.0f} s since the last line")

    def logged(self, line: Mapping[str, float]) -> None:
        """Print one line of metrics."""
        self.measured(f"step {int(line['step'])}/{self.total}  ", line)

    def measured(self, heading: str, line: Mapping[str, float]) -> None:
        """Print metrics after a heading: as one line or, on a terminal that is narrower, as several that begin below each other."""
        whole = heading + describe(line)
        fits = not self.console.is_terminal or len(whole) <= self.console.width
        self.say(*([whole] if fits else fold(heading, describe(line).split(GAP), self.console.width)))


def fold(heading: str, parts: Sequence[str], width: int) -> list[str]:
    """Return lines of at most `width` characters where that can be, broken between parts only."""
    lines, blank = [heading + parts[0]], " " * len(heading)
    for part in parts[1:]:
        if len(lines[-1] + GAP + part) <= width:
            lines[-1] += GAP + part
        else:
            lines.append(blank + part)
    return lines


def describe(line: Mapping[str, float]) -> str:
    """Return the metrics that a person follows, those of an evaluation with their prefix."""
    shown: Sequence[str] = [prefix + name for prefix in ("", "eval_") for name in SHOWN if prefix + name in line]
    return GAP.join(f"{name} {_number(line[name])}" for name in shown)


def _number(value: float) -> str:
    return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.4f}".rstrip("0").rstrip(".")
