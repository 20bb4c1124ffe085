"""Loading a configuration: reading, overrides, interpolation, structuring, and what must agree across keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import cattrs

from truing.config.agreement import disagreements
from truing.config.classes import DEFAULT_ROLLOUT, RewardEntry, RolloutConfig, TrainConfig
from truing.config.failures import faults_of
from truing.config.faults import Fault, Place, dotted, raise_faults
from truing.config.interpolation import interpolate, leaves
from truing.config.overrides import override
from truing.config.plugins import plugin_converter
from truing.config.reading import Document, read_file
from truing.config.structure import settings_of
from truing.errors import ConfigError, PluginError
from truing.loss import Layout
from truing.redact import HIDDEN, remember
from truing.rollout.opening import acts_in_environment

if TYPE_CHECKING:
    from truing.registry import Registry


def load_config(path: Path, overrides: Sequence[str] = (), *, registry: Registry, base_dir: Path | None = None) -> TrainConfig:
    """Return the configuration of a YAML file with `key=value` overrides.

    Names in it are relative to `base_dir`, by default the file's folder. Raises ConfigError with every fault, its file and line;
    PluginError when nothing but plugins is missing.
    """
    document = interpolate(override(read_file(path), overrides))
    return _build(document, registry, base_dir or path.absolute().parent)


def build_config(values: Mapping[str, Any], *, registry: Registry, base_dir: Path = Path()) -> TrainConfig:
    """Return the configuration that a Python mapping says, with the same checks; messages name keys instead of lines."""
    return _build(Document(values, {(): Place(0, "")}), registry, base_dir)


def checked(config: TrainConfig, *, registry: Registry) -> TrainConfig:
    """Return a configuration that was built by hand in Python as the same checks would have built it.

    A list becomes a tuple, a string a Path, one dataset a tuple of one; plugins stay the instances that they are. Raises
    ConfigError with every fault.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"config must be a TrainConfig, got {type(config).__name__}; truing.config.build_config makes one of a mapping"
        )
    values = {field.name: getattr(config, field.name) for field in settings_of(TrainConfig)}
    return build_config(values, registry=registry, base_dir=Path(config.base_dir))


def _build(document: Document, registry: Registry, base_dir: Path) -> TrainConfig:
    remember(document.values)
    layout = _layout(document.values, registry)
    converter = plugin_converter(registry, layout=layout, base_dir=base_dir)
    faults = [*document.faults, *_left_out(document)]
    try:
        config = converter.structure(document.values, TrainConfig)
        sections = {field.name: getattr(config, field.name) for field in settings_of(TrainConfig)}
    except cattrs.ClassValidationError as error:
        faults += faults_of(error, document)
        sections = _valid_sections(document.values, converter)
    for path, message in disagreements(sections, registry, base_dir):
        faults.append(Fault(document.place(path), f"{dotted(path)} {message}"))
    raise_faults(faults)
    remember(config)
    if layout is Layout.ROLLOUT:
        config = _with_online_defaults(config, registry)
    return attrs.evolve(config, base_dir=base_dir)


def _with_online_defaults(config: TrainConfig, registry: Registry) -> TrainConfig:
    """Return the configuration with a rollout and a reward, where it names none: where it acts in one, that of the environment."""
    if config.rollout is None:
        config = attrs.evolve(config, rollout=RolloutConfig(backend=registry.get("rollout", DEFAULT_ROLLOUT)()))
    assert config.rollout is not None
    if not config.rewards:
        reward = "environment" if acts_in_environment(config.rollout) else "default"
        config = attrs.evolve(config, rewards=(RewardEntry(reward=registry.get("reward", reward)()),))
    return config


def _left_out(document: Document) -> Iterator[Fault]:
    for path, value in leaves(document.values):
        if isinstance(value, str) and HIDDEN in value:
            message = (
                f"{dotted(path)} lacks a secret that was left out of this file; write it as ${{oc.env:NAME}}, with the name of"
            )
            yield Fault(document.place(path), f"{message} an environment variable that holds it")


def _layout(values: Mapping[str, Any], registry: Registry) -> Layout | None:
    """Return the layout of the named method; None when there is no such method, which is reported elsewhere."""
    method = values.get("method")
    of_instance = getattr(method, "layout", None)
    if isinstance(of_instance, Layout):
        return of_instance
    name = method.get("name") if isinstance(method, Mapping) else method
    with contextlib.suppress(PluginError):
        if isinstance(name, str):
            return cast(Layout, registry.get("loss", name).layout)
    return None


def _valid_sections(values: Mapping[str, Any], converter: cattrs.Converter) -> dict[str, Any]:
    """Return the sections that are right by themselves, so that what they disagree in is reported with the other faults."""
    sections = {}
    for field in settings_of(TrainConfig):
        if values.get(field.name) is not None:
            with contextlib.suppress(Exception):
                sections[field.name] = converter.structure(values[field.name], cast(Any, field.type))
    return sections
