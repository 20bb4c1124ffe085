"""`truing env-check`: what a server is, seen from here."""

import click


@click.command("env-check")
def env_check() -> None:
    """Check."""
