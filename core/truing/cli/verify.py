"""`truing verify`: read every checkpoint of a run and say which are whole."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def verify(run: Path) -> None:
    """Read every checkpoint of RUN, or the one that RUN is, and say which are whole. Exits 1 when one is damaged."""
    from truing.errors import ConfigError, TruingError
    from truing.train.checkpoint import MANIFEST, DamagedError
    from truing.train.checkpoint import verify as check
    from truing.train.run_dir import RunDir

    checkpoints = [run] if (run / MANIFEST).exists() else RunDir(run).store.checkpoints()
    if not checkpoints:
        raise ConfigError(
            f"{run} holds no checkpoint; give a run directory, or a checkpoint such as {run}/checkpoints/step-00000100"
        )
    damaged = []
    for path in checkpoints:
        try:
            manifest = check(path)
            size = sum(seal.bytes for seal in manifest.files.values())
            click.echo(f"{path}: whole ({len(manifest.files)} files, {size / 1e6:.1f} MB)")
        except DamagedError as error:
            if not path.exists():  # a run that is going on keeps the newest only
                continue
            damaged.append(path)
            click.secho(f"{path}: damaged: {error}", fg="red")
    if damaged:
        raise TruingError(f"{len(damaged)} of {len(checkpoints)} checkpoints are damaged; a run resumes from the newest whole one")
