"""The commands `truing score` and `truing export-reward-model`."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

if TYPE_CHECKING:
    from truing import RowError
    from truing.data.files import Row
    from truing.data.tree import PromptTree
    from truing_reward_model.formats import RowFormat
    from truing_reward_model.rows import Sample
    from truing_reward_model.scorer import Scorer

ROWS_AT_ONCE = 256
SHOWN = 10
"""How many rows that cannot be used standard error names."""


@click.command("score")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write instead of standard output.")
@click.option(
    "--format", "format_", help="How a row is read, as data.format says it; without it, as the run's evaluation (or training) data."
)
@click.option("--limit", type=click.IntRange(min=1), help="Score only the first rows.")
def score(model: Path, data: Path, output: Path | None, format_: str | None, limit: int | None) -> None:
    """Score the rows of DATA with MODEL, the directory of a reward model's run or its model folder.

    A row is one of the format that the model was trained on, or, where that is preference, ranked or text, has prompt and
    completion, messages, chosen and rejected, or prompt and answers with ranks. One line of JSON is written for each row, in
    order: its number and its score or scores, or the error of a row that cannot be used. How many were scored, and what share of
    the pairs is in the right order, is said on standard error.
    """
    import torch

    from truing.config import DataConfig
    from truing.data.load import load_rows
    from truing.errors import ConfigError, DataError
    from truing.train.quiet import quiet_terminal
    from truing_reward_model.formats import row_format
    from truing_reward_model.scorer import Scorer, run_of

    rows = load_rows(DataConfig(path=str(data), limit=limit), Path())
    summary = Summary()
    with quiet_terminal(), ExitStack() as stack:
        scorer = Scorer.load(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        form = row_format(run_of(model), format_, scorer.encoder.tokenizer)
        click.echo(form.said, err=True)
        try:
            file: TextIO = sys.stdout if output is None else stack.enter_context(output.open("w", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--output: {output} cannot be written: {error.strerror}") from error
        while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
            for line in _score_rows(scorer, form, batch, summary):
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
    from truing.train.quiet import quiet_terminal
    from truing_reward_model.export import export

    with quiet_terminal():
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
    shares: list[float] = attrs.field(factory=list)
    """Of each sample with pairs the share that is in the right order."""
    notes: Counter[str] = attrs.field(factory=Counter)
    """What the format made of rows, by description."""

    def lines(self) -> list[str]:
        """Return it as sentences."""
        found = [f"{self.scored:,} rows scored, {len(self.refused):,} not used"]
        found += [f"  {problem}" for problem in self.refused[:SHOWN]]
        if len(self.refused) > SHOWN:
            found.append(f"  and {len(self.refused) - SHOWN:,} more")
        found += [f"{count:,} {note}" for note, count in self.notes.items()]
        if self.pairs:
            accuracy = sum(self.shares) / len(self.shares)
            found.append(f"accuracy {accuracy:.3f} ({self.right:,} of {self.pairs:,} pairs in the right order)")
        return found

    def add(self, sample: Sample, scores: Sequence[Sequence[float]]) -> None:
        """Count a row that was scored."""
        self.scored += 1
        for right, pairs in sample.ordered(scores):
            self.right, self.pairs = self.right + right, self.pairs + pairs
            self.shares += [right / pairs] if pairs else []
        self.notes.update(note for example in sample.examples for note in example.notes)


def _score_rows(scorer: Scorer, form: RowFormat, rows: Sequence[Row], summary: Summary) -> Iterator[dict[str, Any]]:
    """Yield a line for each row, and count it."""
    from truing import RowError

    first = summary.scored + len(summary.refused) + 1
    samples = [_read(row, form) for row in rows]
    encoded = iter(
        scorer.encode([example for sample in samples if not isinstance(sample, RowError) for example in sample.examples])
    )
    read = [sample if isinstance(sample, RowError) else _trees(scorer, sample, encoded) for sample in samples]
    scores = iter(scorer.score([tree for trees in read if not isinstance(trees, RowError) for tree in trees]))
    for number, (row, sample, trees) in enumerate(zip(rows, samples, read, strict=True), first):
        if isinstance(trees, RowError):
            summary.refused.append(f"{row.where}: {trees}")
            yield {"row": number, "error": str(trees)}
            continue
        assert not isinstance(sample, RowError)
        found = list(itertools.islice(scores, len(trees)))
        summary.add(sample, found)
        yield {"row": number, **sample.line(found)}


def _read(row: Row, form: RowFormat) -> Sample | RowError:
    from truing import RowError
    from truing_reward_model.rows import read_sample

    try:
        return RowError(row.problem) if row.problem is not None else read_sample(row.columns, form)
    except RowError as error:
        return error


def _trees(scorer: Scorer, sample: Sample, encoded: Iterator[PromptTree | RowError]) -> list[PromptTree] | RowError:
    """Return the next trees, those of one row, or why it is not used: the row is not split."""
    from truing import RowError

    found = [tree if isinstance(tree, RowError) else scorer.check(tree) for tree in itertools.islice(encoded, len(sample.examples))]
    return next((tree for tree in found if isinstance(tree, RowError)), [tree for tree in found if not isinstance(tree, RowError)])
