"""The command `truing explain`."""

from __future__ import annotations

import click


@click.command()
@click.argument("key")
def explain(key: str) -> None:
    """Say what a KEY of the configuration, or a plugin, is: type, default, bounds, and where it comes from.

    KEY is a dotted key (trainer.learning_rate, method.beta), the last part of one (beta), a plugin's name (dpo) or its
    field (dpo.beta).
    """
    from truing.config.explain import explain as explanation
    from truing.registry import Registry

    click.echo(explanation(key, Registry.load()))
