"""Rewards: the contract, plain functions as rewards, and the registry that users decorate."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

import attrs

from truing.errors import ConfigError, PluginError
from truing.rollout.completion import Completion
from truing.suggest import did_you_mean

if TYPE_CHECKING:
    from truing.context import OpenContext

Scores = Sequence[float | None]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SIGNATURES = (
    "f(prompt, response) -> float",
    "f(completions, **columns) -> list[float]",
    "f(prompts, completions, **columns) -> list[float]",
)
"""What a plain function may look like to be a reward; completions are strings there, and columns the dataset's further ones."""

DEFAULT_WARNING = "reward `default` returns 0.0 for every completion: nothing will be learned; name a reward under `rewards`"
"""What a run says loudly, in `truing check` and at its start, when `default` is its only reward."""


class Reward(Protocol):
    """Scores completions: an attrs class of settings. None means that the reward does not apply to that completion."""

    name: ClassVar[str]

    def __call__(self, completions: Sequence[Completion]) -> Scores | Awaitable[Scores]:
        """Return one number, or None, for each completion, in order."""


class OpenedReward(Protocol):
    """A reward that keeps something alive, such as a model: an attrs class of settings that is opened once for a run."""

    name: ClassVar[str]

    def open(self, context: OpenContext) -> AbstractContextManager[Callable[[Sequence[Completion]], Scores | Awaitable[Scores]]]:
        """Return a context manager that yields what is called with completions, as a Reward is."""


@attrs.frozen(kw_only=True)
class DefaultReward:
    """0.0 for every completion: it lets a run without a reward start, and nothing is learned."""

    name: ClassVar[str] = "default"

    def __call__(self, completions: Sequence[Completion]) -> Scores:
        """Return zeros."""
        return [0.0] * len(completions)


@attrs.frozen
class CallableReward:
    """A plain function as a reward, called by the names of its parameters; see SIGNATURES.

    It may be `async def`. A parameter that is none of prompt(s), response and completions is a column, and `**columns` takes all
    others: one value in `f(prompt, response)`, else a list with one for each completion, None where a row lacks it. Raises
    ConfigError for a signature that fits none of the three, and on a call when a column is asked for that no row has.
    """

    name: str
    function: Callable[..., Any]
    _parameters: Mapping[str, inspect.Parameter] = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _read_parameters(self.name, self.function), takes_self=True)
    )

    def __call__(self, completions: Sequence[Completion]) -> Scores | Awaitable[Scores]:
        """Call the function and return what it gives, unchecked."""
        if not completions:
            return []
        columns = self._columns(completions)
        prompts = [completion.prompt for completion in completions]
        texts = [completion.text for completion in completions]
        if "completions" in self._parameters:
            given = {"prompts": prompts} if "prompts" in self._parameters else {}
            return cast("Scores | Awaitable[Scores]", self.function(completions=texts, **given, **columns))
        results = [
            self.function(prompt=prompt, response=text, **{key: values[row] for key, values in columns.items()})
            for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        return _gather(results) if any(map(inspect.isawaitable, results)) else results

    def _columns(self, completions: Sequence[Completion]) -> dict[str, list[Any]]:
        known = {key for completion in completions for key in completion.columns} - _GIVEN
        wanted = {key: parameter for key, parameter in self._parameters.items() if key not in _GIVEN}
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
        for key, parameter in wanted.items():
            required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if required and key not in known:
                columns = ", ".join(sorted(known)) or "none"
                raise ConfigError(
                    f"reward {self.name!r} asks for column {key!r}, which no row has (columns: {columns}){did_you_mean(key, known)}"
                )
        passed = sorted(known) if takes_all else [key for key in wanted if key in known]
        return {key: [completion.columns.get(key) for completion in completions] for key in passed}


@attrs.frozen(kw_only=True)
class FunctionReward:
    """A user's function `file.function` as a reward; it is found and imported at the first call."""

    name: str
    base_dir: Path = attrs.field(default=Path(), metadata={"internal": True})

    @cached_property
    def loaded(self) -> Reward:
        """What the name stands for, imported. Raises ConfigError where it cannot be found, imported or called as a reward."""
        from truing.functions import find_function, load_function

        return as_reward(load_function(find_function(self.name, self.base_dir)), name=self.name)

    def __call__(self, completions: Sequence[Completion]) -> Scores | Awaitable[Scores]:
        """Call the function."""
        return self.loaded(completions)


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
        raise ConfigError(f"a reward must be a function, a Reward or a name, got {_show(thing)}")
    if attrs.has(type(thing)) and isinstance(getattr(thing, "name", None), str):
        return cast("Reward", thing)
    return cast("Reward", CallableReward(name or str(getattr(thing, "__name__", type(thing).__name__)), thing))


def score(reward: Reward, completions: Sequence[Completion]) -> list[float | None]:
    """Return the reward's score of each completion, checked.

    An `async def` reward is run to its end, within a running event loop too. Raises PluginError that says what was wrong: not as
    many results as completions, a result that is not a number, or one that is not finite.
    """
    result: Any = reward(completions)
    if inspect.isawaitable(result):
        result = _run(result)
    if isinstance(result, (str, bytes, Mapping)) or not hasattr(result, "__len__"):
        raise PluginError(
            f"reward {reward.name!r} must return a list with a number or None for each completion, got {_show(result)}"
        )
    if len(result) != len(completions):
        raise PluginError(
            f"reward {reward.name!r} returned {len(result)} scores for {len(completions)} completions; one for each is needed"
        )
    return [_read_score(reward, index, value) for index, value in enumerate(result)]


def _read_score(reward: Reward, index: int, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise PluginError(f"reward {reward.name!r} returned {_show(value)} for completion {index}; a score is a number or None")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # an array of several numbers, for one
        raise PluginError(
            f"reward {reward.name!r} returned {_show(value)} for completion {index}, which is not one number ({error})"
        ) from error
    if not math.isfinite(number):
        raise PluginError(f"reward {reward.name!r} returned {number} for completion {index}; return None where it does not apply")
    return number


_GIVEN = {"prompt", "response", "prompts", "completions"}


def _read_parameters(name: str, function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = {}
    by_name = [
        key for key, parameter in parameters.items() if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    unreachable = [
        key for key, parameter in parameters.items() if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    ]
    given = _GIVEN.intersection(by_name)
    if unreachable or given not in ({"prompt", "response"}, {"completions"}, {"prompts", "completions"}):
        shown = f"{name}({', '.join(map(str, parameters.values()))})"
        raise ConfigError(
            f"reward function {shown} fits none of the accepted signatures, by parameter name: {'; '.join(SIGNATURES)}"
        )
    return parameters


async def _gather(results: Sequence[Awaitable[float | None]]) -> Scores:
    import asyncio

    return await asyncio.gather(*results)


def _run(awaitable: Awaitable[Any]) -> Any:
    """Run to the end; in a thread of its own when this one has a running loop, as notebooks do."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()


def _show(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
