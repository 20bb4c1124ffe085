"""`truing env-check`: what the environment of a server is, a random episode in it, and how fast it answers."""

from __future__ import annotations

import click

from truing.errors import ConfigError


@click.command("env-check")
@click.argument("url")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the episode and its actions.")
@click.option("--turns", type=click.IntRange(min=1), default=10, show_default=True, help="Most steps of the episode.")
@click.option("--sessions", type=click.IntRange(min=1), default=8, show_default=True, help="Sessions at once, or all there are.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True, help="How long to measure.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Longest wait, seconds."
)
def env_check(url: str, seed: int, turns: int, sessions: int, seconds: float, timeout: float) -> None:
    """Show what the OpenEnv server at URL is, play an episode of random actions, and measure round trips."""
    from truing_openenv.backend import OpenEnvRollout
    from truing_openenv.environments import OpenEnvironments
    from truing_openenv.report import print_report

    try:
        settings = OpenEnvRollout(url=url)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    environments = OpenEnvironments.open(settings, timeout)
    try:
        print_report(environments, seed=seed, turns=turns, sessions=sessions, seconds=seconds)
    finally:
        environments.close()
