"""The commands `truing score` and `truing export-reward-model`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

if TYPE_CHECKING:
    from truing.data.files import Row
    from truing_reward_model.scorer import Scorer

ROWS_AT_ONCE = 256
SHOWN = 10
"""How many rows that cannot be used standard error names."""


@click.command("score")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write instead of standard output.")
@click.option("--limit", type=click.IntRange(min=1), help="Score only the first rows.")
def score(model: Path, data: Path, output: Path | None, limit: int | None) -> None:
    """Score the rows of DATA with MODEL, the directory of a reward model's run or its model folder.

    A row has prompt and completion, messages, chosen and rejected, or prompt and answers with ranks. One line of JSON is written
    for each row, in order: its number and its score or scores, or the error of a row that cannot be used. How many were scored,
    and what share of the pairs is in the right order, is said on standard error.
    """
    import torch

    from truing.config import DataConfig
    from truing.data.load import load_rows
    from truing.data.strategies import Preference
    from truing.errors import ConfigError, DataError
    from truing.train.quiet import quiet_libraries
    from truing_reward_model.scorer import Scorer

    rows = load_rows(DataConfig(path=str(data), format=Preference(), limit=limit), Path())
    summary = Summary()
    with quiet_libraries(), ExitStack() as stack:
        scorer = Scorer.load(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            file: TextIO = sys.stdout if output is None else stack.enter_context(output.open("w", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--output: {output} cannot be written: {error.strerror}") from error
        while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
            for line in _score_rows(scorer, batch, summary):
                file.write(json.dumps(line) + "\n")
            file.flush()
    click.echo("\n".join(summary.lines()), err=True)
    if not summary.scored:
        raise DataError(f"no row of {data} can be scored; the errors above say why")


@click.command("export-reward-model")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def export_reward_model(run: Path, folder: Path) -> None:
    """Write the reward model of RUN to FOLDER as a model of transformers that classifies sequences, with one label.

    An adapter is merged into its model.
    """
    from truing.train.quiet import quiet_libraries
    from truing_reward_model.export import export

    with quiet_libraries():
        said = export(run, folder)
    click.echo("\n".join(said))


@attrs.define
class Summary:
    """What became of the rows."""

    scored: int = 0
    refused: list[str] = attrs.field(factory=list)
    right: int = 0
    """Pairs whose scores are in the right order."""
    pairs: int = 0

    def lines(self) -> list[str]:
        """Return it as sentences."""
        found = [f"{self.scored:,} rows scored, {len(self.refused):,} not used"]
        found += [f"  {problem}" for problem in self.refused[:SHOWN]]
        if len(self.refused) > SHOWN:
            found.append(f"  and {len(self.refused) - SHOWN:,} more")
        if self.pairs:
            found.append(f"accuracy {self.right / self.pairs:.3f} ({self.right:,} of {self.pairs:,} pairs in the right order)")
        return found


def _score_rows(scorer: Scorer, rows: Sequence[Row], summary: Summary) -> Iterator[dict[str, Any]]:
    """Yield a line for each row, and count it."""
    from truing import RowError
    from truing_reward_model.rows import Sample

    first = summary.scored + len(summary.refused) + 1
    samples = [_read(row) for row in rows]
    encoded = iter(scorer.encode([sample.example for sample in samples if isinstance(sample, Sample)]))
    trees = [next(encoded) if isinstance(sample, Sample) else sample for sample in samples]
    checked = [tree if isinstance(tree, RowError) else scorer.check(tree) for tree in trees]
    scores = iter(scorer.score([tree for tree in checked if not isinstance(tree, RowError)]))
    for number, (row, sample, tree) in enumerate(zip(rows, samples, checked, strict=True), first):
        if isinstance(tree, RowError):
            summary.refused.append(f"{row.where}: {tree}")
            yield {"row": number, "error": str(tree)}
            continue
        assert isinstance(sample, Sample)
        found = next(scores)
        right, pairs = sample.ordered(found)
        summary.scored, summary.right, summary.pairs = summary.scored + 1, summary.right + right, summary.pairs + pairs
        yield {"row": number, **sample.line(found)}


def _read(row: Row) -> Any:
    from truing import RowError
    from truing_reward_model.rows import read_sample

    try:
        return RowError(row.problem) if row.problem is not None else read_sample(row.columns)
    except RowError as error:
        return error
