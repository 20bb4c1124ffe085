"""The command `truing check`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from truing.config import DataConfig, TrainConfig


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
def check(config: Path, overrides: tuple[str, ...]) -> None:
    """Check CONFIG without training: every fault at once, with its line. OVERRIDES change single keys: trainer.seed=1."""
    from truing.config import load_config
    from truing.config.agreement import warnings_of
    from truing.data.recognise import with_formats
    from truing.registry import Registry

    registry = Registry.load()
    loaded = load_config(config, overrides, registry=registry)
    chosen: list[str] = []
    if all(_is_there(entry, loaded) for entry in (*loaded.data, *loaded.eval_data) if entry.format is None):
        loaded, chosen = with_formats(loaded, lambda: registry)
    summary = list(_summary(loaded))
    click.echo(f"{config} is valid.")
    for name, value in summary:
        click.echo(f"  {name:<10}{value}")
    for line in chosen:
        click.echo(f"  {line}")
    for warning in (*warnings_of(loaded), *_missing_files(loaded)):
        click.secho(f"warning: {warning}", fg="yellow", err=True)


def _summary(config: TrainConfig) -> Iterator[tuple[str, str]]:
    from truing.rollout.plan import plan_of

    trainer = config.trainer
    yield "method", config.method.name
    yield "model", config.model.name + (f", training a {config.model.adapter.type} adapter" if config.model.adapter else "")
    for key, entries in (("data", config.data), ("eval_data", config.eval_data)):
        for entry in entries:
            yield key, f"{_where(entry)} as {entry.format_name}" + (f", weight {entry.weight:g}" if entry.weight else "")
    plan = plan_of(config, trainer.batch_size * trainer.gradient_accumulation)
    if config.rollout is not None and plan is not None:
        completions = f"{plan.num_generations} completions of each prompt, of up to {plan.sampling.max_completion_length} tokens"
        again = f", each rollout batch for {plan.updates} steps" if plan.updates > 1 else ""
        acts = f", acting in {config.rollout.environment}" if config.rollout.environment else ""
        tools = f", with the tools {', '.join(config.rollout.tools)}" if config.rollout.tools else ""
        yield "rollout", f"{config.rollout.backend.name}: {completions}{acts}{tools}{again}"
    if config.rewards:
        yield "rewards", ", ".join(f"{entry.weight:g} x {entry.reward.name}" for entry in config.rewards)
    prompts = trainer.batch_size * trainer.gradient_accumulation
    yield "step", f"{trainer.batch_size} prompts x {trainer.gradient_accumulation} accumulated = {prompts} prompts in each process"
    yield "length", f"max_steps {trainer.max_steps}" if trainer.max_steps else f"num_epochs {trainer.num_epochs:g}"
    yield "output", str(config.output.dir)


def _where(entry: DataConfig) -> str:
    return ", ".join([*([entry.path] if entry.path else []), *entry.data_files])


def _is_there(entry: DataConfig, config: TrainConfig) -> bool:
    """Return whether a dataset is on this machine, so that its first row can be looked at."""
    from truing.data.paths import local_path

    files = [entry.path] if entry.path is not None else list(entry.data_files)
    return all(local_path(file, config.base_dir) is not None for file in files)


def _missing_files(config: TrainConfig) -> Iterator[str]:
    from truing.data.files import file_type
    from truing.data.paths import local_path, may_be_hub_id, where_looked

    for key, entries in (("data", config.data), ("eval_data", config.eval_data)):
        for entry in entries:
            path = entry.path
            if path is None or local_path(path, config.base_dir) or (may_be_hub_id(path) and file_type(Path(path)) is None):
                continue
            yield f"{key}.path {path} is not there yet: looked for {where_looked(path, config.base_dir)}"
