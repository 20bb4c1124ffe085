"""The command `truing schema`."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the configuration's JSON Schema, installed plugins included, for completion and checks in editors."""
    from truing.config.schema import json_schema
    from truing.registry import Registry

    click.echo(json.dumps(json_schema(Registry.load()), indent=2))
