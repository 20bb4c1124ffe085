"""Where a reward's code is, so that another process can make it: from names and settings, never from pickled objects."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import msgspec

from truing.rewards.contract import Reward, prepare
from truing.rewards.functions import CallableReward, FunctionReward, with_arguments
from truing.rewards.registry import as_reward, reward_registry


class Source(msgspec.Struct, frozen=True):
    """A function beside the configuration, or a class or function of an importable module."""

    name: str
    base_dir: str | None = None
    """The folder of the configuration, for a function named `file.function`."""
    module: str = ""
    qualname: str = ""
    settings: Mapping[str, Any] = {}
    """A plugin's settings by key; a function's arguments."""

    def load(self) -> Reward:
        """Return the reward, prepared. Raises whatever its modules raise, and ConfigError for a function that does not fit."""
        reward = self._reward()
        prepare(reward)
        return reward

    def _reward(self) -> Reward:
        if self.base_dir is not None:
            return FunctionReward(name=self.name, base_dir=Path(self.base_dir), arguments=self.settings).loaded
        found = _look_up(importlib.import_module(self.module), self.qualname)
        if not isinstance(found, type):
            return with_arguments(as_reward(found, name=self.name), self.settings)
        from truing.config.structure import strict_converter

        return cast("Reward", strict_converter().structure(self.settings, found))


def source_of(reward: Any) -> Source | None:
    """Return where a reward that was named is found again, None for one that only this process has.

    That is a function `file.function`, a class of settings that can be imported, and a function of `reward_registry` that can. A
    function that was handed over as an object is called where it was made, and so is what a notebook or script defines.
    """
    if isinstance(reward, FunctionReward):
        return _plain(Source(reward.name, base_dir=str(reward.base_dir.absolute()), settings=reward.arguments))
    if isinstance(reward, CallableReward):
        return _importable(reward.name, reward.function, reward.arguments) if _is_registered(reward) else None
    settings = attrs.asdict(
        reward,
        filter=lambda field, _: field.init and not field.metadata.get("internal"),
        value_serializer=lambda _, __, value: str(value) if isinstance(value, Path) else value,
    )
    return _importable(reward.name, type(reward), settings)


def _is_registered(reward: CallableReward) -> bool:
    return reward.name in reward_registry.names() and getattr(reward_registry.get(reward.name), "function", None) is reward.function


def _plain(source: Source) -> Source | None:
    """Return the source, None with settings that no YAML can write."""
    try:
        msgspec.msgpack.encode(source.settings)
    except (TypeError, OverflowError):
        return None
    return source


def _importable(name: str, thing: Any, settings: Mapping[str, Any]) -> Source | None:
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if module is None or module == "__main__" or getattr(sys.modules.get(module), "__spec__", None) is None:
        return None
    try:
        found = _look_up(sys.modules[module], qualname)
    except AttributeError:
        return None
    return _plain(Source(name, module=module, qualname=qualname, settings=settings)) if found is thing else None


def _look_up(module: Any, qualname: str) -> Any:
    for part in qualname.split("."):
        module = getattr(module, part)
    return module
