"""`truing replay`: compute a step again that a run left out, and say which sample is to blame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from truing.train.replay import Replay


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("step", type=click.IntRange(min=1))
def replay(run: Path, step: int) -> None:
    """Compute again STEP of RUN, one that was left out, and say which sample is to blame."""
    from truing.train.console import Reporter
    from truing.train.quiet import quiet_terminal
    from truing.train.replay import replay as compute

    with quiet_terminal():
        found = compute(run, step, reporter=Reporter(quiet=True))
    _report(run, found)


def _report(run: Path, found: Replay) -> None:
    from truing.train.skipped import NO_WEIGHTS

    skipped = found.skipped
    click.echo(f"step {skipped.step} of {run}: left out because of {', '.join(skipped.problems)}")
    if skipped.weights is None:
        click.echo(NO_WEIGHTS)
    click.echo(f"computed again: loss {found.loss:g}, grad_norm {found.grad_norm:g}")
    click.echo(f"not finite now: {', '.join(found.problems) or 'nothing'}")
    for name in skipped.damaged_state:
        click.echo(f"  optimiser's state: {name}")
    blamed = [sample for sample in found.samples if sample.problems]
    for sample in blamed:
        loss = "" if sample.loss is None else f", loss {sample.loss:g}"
        click.echo(f"  sample {sample.sample_id}: not finite: {', '.join(sample.problems)}{loss}")
    if not blamed:
        click.echo(f"  each of its {len(found.samples)} samples is finite by itself")
