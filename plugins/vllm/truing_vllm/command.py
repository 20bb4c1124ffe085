"""`truing vllm-serve`: a server for the run that a configuration describes."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("vllm-serve")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
def vllm_serve(config: Path, overrides: tuple[str, ...]) -> None:
    """Start `vllm serve` with CONFIG's model for its rollouts, guarded by a token, until Ctrl-C."""
    from truing_vllm.serving import serve

    serve(config, overrides)
