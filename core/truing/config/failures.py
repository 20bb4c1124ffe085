"""Turns what cattrs raised into faults, each with its place and its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cattrs
from cattrs.errors import ForbiddenExtraKeysError

from truing.config.classes import DataConfig, ModelConfig, OutputConfig, RewardEntry, RolloutConfig, TrainerConfig
from truing.config.faults import Fault, KeyPath, WrongValueError, dotted
from truing.config.reading import Document
from truing.config.structure import ENTRY_SLOTS, setting_of, settings_of, shared_settings
from truing.errors import ConfigError, PluginError
from truing.suggest import closest

SECTIONS: Mapping[str, type] = {"trainer": TrainerConfig, "model": ModelConfig, "data": DataConfig, "output": OutputConfig}
OTHER_TOOLS: Mapping[str, str] = {
    "base_model": "model.name",
    "model_name_or_path": "model.name",
    "output_dir": "output.dir",
    "lr": "trainer.learning_rate",
    "num_train_epochs": "trainer.num_epochs",
    "per_device_train_batch_size": "trainer.batch_size",
    "gradient_accumulation_steps": "trainer.gradient_accumulation",
    "optim": "trainer.optimizer",
    "bf16": "trainer.mixed_precision",
    "fp16": "trainer.mixed_precision",
}
"""Keys of other tools, and what they are called here."""


def faults_of(error: Exception, document: Document, path: KeyPath = ()) -> Iterator[Fault]:
    """Yield a fault for everything that is wrong below `path`."""
    if isinstance(error, cattrs.ClassValidationError):
        yield from _class_faults(error, document, path)
    elif isinstance(error, cattrs.IterableValidationError):
        for item, note in error.group_exceptions()[0]:
            yield from faults_of(item, document, (*path, note.index))
    else:
        yield Fault(document.place(path), _sentence(error, path), missing_plugin=isinstance(error, PluginError))


def _sentence(error: Exception, path: KeyPath) -> str:
    if isinstance(error, WrongValueError):
        return f"{dotted(path)} {error}"
    if isinstance(error, PluginError):
        return str(error)
    kind = "" if isinstance(error, (ValueError, ConfigError)) else f"{type(error).__name__}: "
    return f"{dotted(path)}: {kind}{error}"


def _class_faults(error: cattrs.ClassValidationError, document: Document, path: KeyPath) -> Iterator[Fault]:
    noted, others = error.group_exceptions()
    unknown = [key for other in others if isinstance(other, ForbiddenExtraKeysError) for key in sorted(other.extra_fields, key=str)]
    known = [field.name for field in settings_of(error.cl)]
    meant = {key: _meant(str(key), error.cl, path) for key in unknown}
    for key, near in meant.items():
        message = f"{dotted((*path, key))} is not a known key{_hint(str(key), near, path, known)}"
        yield Fault(document.place((*path, key)), message)
    for other, note in noted:
        if isinstance(other, KeyError) and other.args == (note.name,):
            if note.name not in meant.values() and (*path, note.name) not in document.unresolved:
                yield Fault(document.place(path), f"{dotted((*path, note.name))} is required: {_help(error.cl, note.name)}")
        else:
            # the YAML writes a plugin's settings beside those of its entry
            below = path if ENTRY_SLOTS.get(error.cl) == note.name else (*path, note.name)
            yield from faults_of(other, document, below)
    for other in others:
        if not isinstance(other, ForbiddenExtraKeysError):
            yield from faults_of(other, document, path)


def _meant(key: str, cls: Any, path: KeyPath) -> str | None:
    """Return the key that an unknown one most likely stands for: it is another name of it, or nearly its name."""
    called = next((field.name for field in settings_of(cls) if key in field.metadata.get("also", ())), None)
    return called or closest(key, _keys(cls, path))


def _keys(cls: Any, path: KeyPath) -> list[str]:
    """Return the keys that a mapping may have: the fields, and those that stand beside a plugin's own."""
    slot = ([part for part in path if isinstance(part, str)] or [""])[-1]
    entry = {"rewards": RewardEntry, "rollout": RolloutConfig}.get(slot)
    beside = [field.name for field in shared_settings(entry)] if entry is not None else []
    return [*(field.name for field in settings_of(cls)), *(["name"] if entry or slot in ("method", "format") else []), *beside]


def _hint(key: str, near: str | None, path: KeyPath, known: list[str]) -> str:
    if near:
        return f"; did you mean {near!r}?"
    for section, cls in SECTIONS.items():
        if section != dotted(path) and key in (field.name for field in settings_of(cls)):
            return f"; did you mean {section}.{key}?"
    if path[:1] == ("rollout",) and key in (field.name for field in shared_settings(RolloutConfig)):
        return f"; did you mean rollout.{key}?"
    if key in OTHER_TOOLS:
        return f"; did you mean {OTHER_TOOLS[key]}?"
    if not known:
        return "; nothing can be set here"
    return f"; the keys here are {', '.join(known)}" if len(known) <= 15 else f"; `truing explain {dotted(path)}` lists the keys"


def _help(cls: Any, name: str) -> str:
    help_: str = setting_of(cls, name).metadata.get("help", "")
    return help_[:1].lower() + help_[1:]
