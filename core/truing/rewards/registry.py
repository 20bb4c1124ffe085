"""Rewards by name: the registry that users decorate, and what a user may hand over as a reward."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from truing.errors import ConfigError
from truing.rewards.contract import DefaultReward, Reward
from truing.rewards.functions import CallableReward, FunctionReward
from truing.suggest import did_you_mean

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class RewardRegistry:
    """Rewards by name that were registered with a decorator, for `align(rewards=["name"])`."""

    def __init__(self) -> None:
        self._rewards: dict[str, Reward] = {}

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Return a decorator that registers a function or a Reward class under `name` and gives it back unchanged.

        The same function of the same module, run anew as notebooks do with a cell, takes its own place. Raises ConfigError for a
        name that is taken or not made of lower-case words joined by "_", and for an unclear signature.
        """
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ConfigError(f'the reward name {name!r} is not allowed; use lower-case words joined by "_", such as math_accuracy')
        taken: Mapping[str, Any] = {**self._rewards, DefaultReward.name: DefaultReward()}

        def decorate(function: Decorated) -> Decorated:
            if name in taken:
                owner = getattr(taken[name], "function", type(taken[name]))
                if _origin(owner) != _origin(function):
                    raise ConfigError(f"the reward name {name!r} is taken by {'.'.join(_origin(owner))}; choose another")
            self._rewards[name] = as_reward(function, name=name)
            return function

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return the registered names in alphabetical order."""
        return tuple(sorted(self._rewards))

    def get(self, name: str) -> Reward:
        """Return the reward. Raises ConfigError for an unknown name, with what it may have meant."""
        if name not in self._rewards:
            raise ConfigError(f"no reward {name!r} is registered{did_you_mean(name, self._rewards)}")
        return self._rewards[name]


def _origin(thing: Any) -> tuple[str, str]:
    return str(thing.__module__), str(getattr(thing, "__qualname__", type(thing).__qualname__))


reward_registry = RewardRegistry()
"""The one registry that is module state, because users decorate their functions with its `register`."""


def as_reward(thing: Any, *, name: str | None = None, base_dir: Path = Path()) -> Reward:
    """Return a reward for what a user handed over: a Reward, its class, a plain function, or a name.

    A name is one that was registered with `reward_registry`, or `file.function` beside `base_dir` or importable. Raises ConfigError
    for a name that is neither, an unclear signature, or a thing that cannot be called.
    """
    if isinstance(thing, str):
        is_file = "." in thing and thing not in reward_registry.names()
        return cast("Reward", FunctionReward(name=thing, base_dir=base_dir)) if is_file else reward_registry.get(thing)
    if isinstance(thing, type):
        thing = thing()
    if not callable(thing) and not hasattr(thing, "open"):
        raise ConfigError(f"a reward must be a function, a Reward or a name, got {type(thing).__name__} {thing!r:.60}")
    if attrs.has(type(thing)) and isinstance(getattr(thing, "name", None), str):
        return cast("Reward", thing)
    return cast("Reward", CallableReward(name or str(getattr(thing, "__name__", type(thing).__name__)), thing))
