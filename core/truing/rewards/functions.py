"""Plain functions as rewards: called by the names of their parameters, found by `file.function`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import attrs

from truing.errors import ConfigError
from truing.rewards.contract import Reward, Scores
from truing.rollout.completion import Completion
from truing.suggest import did_you_mean

SIGNATURES = (
    "f(prompt, response) -> float",
    "f(completions, **columns) -> list[float]",
    "f(prompts, completions, **columns) -> list[float]",
)
"""What a plain function may look like to be a reward; completions are strings there, and columns the dataset's further ones."""


@attrs.frozen
class CallableReward:
    """A plain function as a reward, called by the names of its parameters; see SIGNATURES.

    It may be `async def`. A parameter that is none of prompt(s), response and completions is a column, and `**columns` takes all
    others: one value in `f(prompt, response)`, else a list with one for each completion, None where a row lacks it. One that ends
    in s, and is no column, is the column of its singular (`fed_from`). Raises ConfigError for a signature that fits none of the
    three, for arguments that are no parameters of it, and on a call when a column is asked for that no row of the call has.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    """Values of parameters, by name, that are the same in every call."""
    _parameters: Mapping[str, inspect.Parameter] = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _read_parameters(self.name, self.function), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        named = [key for key, parameter in self._parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        check_arguments(self.name, self.arguments, named)

    @property
    def compares(self) -> bool:
        """Whether the function says of itself, by an attribute, that it compares the completions of a call."""
        return bool(getattr(self.function, "compares", False))

    def __call__(self, completions: Sequence[Completion]) -> Scores | Awaitable[Scores]:
        """Call the function and return what it gives, unchecked."""
        if not completions:
            return []
        columns = self._columns(completions)
        prompts = [completion.prompt for completion in completions]
        texts = [completion.text for completion in completions]
        if "completions" in self._parameters:
            given = {"prompts": prompts} if "prompts" in self._parameters else {}
            return cast("Scores | Awaitable[Scores]", self.function(completions=texts, **given, **columns, **self.arguments))
        results = [
            self.function(prompt=prompt, response=text, **{key: values[row] for key, values in columns.items()}, **self.arguments)
            for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        return _gather(results) if any(map(inspect.isawaitable, results)) else results

    def _columns(self, completions: Sequence[Completion]) -> dict[str, list[Any]]:
        known = {key for completion in completions for key in completion.columns} - _GIVEN
        settled = _GIVEN | self.arguments.keys()
        wanted = {key: parameter for key, parameter in self._parameters.items() if key not in settled}
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
        for key, parameter in wanted.items():
            required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if required and column_of(key, known) is None:
                columns = ", ".join(sorted(known)) or "none"
                raise ConfigError(
                    f"reward {self.name!r} asks for column {key!r}, which these rows lack (columns: {columns})"
                    f"{did_you_mean(key, known)}; a default value makes it optional"
                )
        passed = {key: column for key in wanted if (column := column_of(key, known)) is not None}
        passed |= {key: key for key in sorted(known - settled)} if takes_all else {}
        return {key: [completion.columns.get(column) for completion in completions] for key, column in passed.items()}


@attrs.frozen(kw_only=True)
class FunctionReward:
    """A user's function `file.function` as a reward; it is found and imported at the first call."""

    name: str
    base_dir: Path = attrs.field(default=Path(), metadata={"internal": True})
    arguments: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    """Values of the function's parameters, by name, that are the same in every call."""

    @cached_property
    def loaded(self) -> Reward:
        """What the name stands for, imported. Raises ConfigError where it cannot be found, imported or called as a reward."""
        from truing.functions import find_function, load_function
        from truing.rewards.registry import as_reward

        return with_arguments(as_reward(load_function(find_function(self.name, self.base_dir)), name=self.name), self.arguments)

    @property
    def compares(self) -> bool:
        """Whether the function says of itself that it compares the completions of a call."""
        return bool(getattr(self.loaded, "compares", False))

    def __call__(self, completions: Sequence[Completion]) -> Scores | Awaitable[Scores]:
        """Call the function."""
        return self.loaded(completions)


def with_arguments(reward: Reward, arguments: Mapping[str, Any]) -> Reward:
    """Return the reward with values of its function's parameters. Raises ConfigError where it has no such parameters."""
    if not arguments:
        return reward
    if not isinstance(reward, CallableReward):
        raise ConfigError(f"reward {reward.name!r} is no plain function and takes no settings; remove {', '.join(arguments)}")
    return cast("Reward", attrs.evolve(reward, arguments=arguments))


def check_arguments(name: str, arguments: Mapping[str, Any], parameters: Collection[str]) -> None:
    """Raise ConfigError for arguments of a reward function that are none of its parameters, or that it is given anyway."""
    free = [key for key in parameters if key not in _GIVEN]
    for key in arguments:
        if key not in free:
            raise ConfigError(
                f"reward function {name} has no parameter {key!r} to be set (parameters: {', '.join(free) or 'none'})"
                f"{did_you_mean(key, free)}"
            )


def column_of(parameter: str, known: Collection[str]) -> str | None:
    """Return the column that feeds a parameter: that of its name, else `answer` for `answers`; None where there is none."""
    if parameter in known:
        return parameter
    return parameter[:-1] if parameter.endswith("s") and parameter[:-1] in known else None


def fed_from(reward: Any, known: Collection[str]) -> list[str]:
    """Return a sentence for each parameter of a function that is fed from a column of another name; imports nothing."""
    from truing.functions import find_function, parameters_of

    if isinstance(reward, FunctionReward):
        parameters: Iterable[str] = parameters_of(find_function(reward.name, reward.base_dir))
    else:
        parameters = reward._parameters if isinstance(reward, CallableReward) else ()
    settled = _GIVEN.union(getattr(reward, "arguments", ()))
    fed = {name: column_of(name, known) for name in parameters if name not in settled}
    return [
        f"reward {reward.name}: its parameter `{name}` is fed from the column `{column}`"
        for name, column in fed.items()
        if column not in (None, name)
    ]


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
