"""A class of the user's as an environment: `reset(seed=None, **columns)` and `step(text)`, plain or async."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from truing.data.example import Message
from truing.errors import ConfigError
from truing.functions import find_function, load_function
from truing.rollout.environment import Environment, Observation, is_message, reward_fault
from truing.suggest import did_you_mean
from truing.threads import Beside, LoopThread

ALLOWED = (
    "text, a message or a list of messages (dicts with `role` and `content`), (text or messages, reward, done), or a "
    "truing.Observation"
)
"""What `reset` and `step` may return; `reset` also None, and so may the first of three."""


@attrs.define(eq=False)
class PythonEnvironments:
    """Environments of a user's class `file.Class`, an object for each episode.

    Its plain methods are called in a thread of the episode's own, others are awaited. `name`, by default the class's, is what the
    reward is called, and `capacity`, by default None, how many episodes may be open at once: both attributes of the class.
    """

    dotted: str
    make: Callable[[], Any]
    timeout: float
    """Seconds that a call may take."""
    name: str
    capacity: int | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    _awaiting: LoopThread = attrs.field(factory=LoopThread, init=False)

    def new(self) -> Environment:
        """Return an environment, whose object is made when it is reset."""
        return _PythonEnvironment(self, Beside(self.name, self._awaiting))

    def close(self) -> None:
        """End the loop in which methods are awaited."""
        self._awaiting.close()


def load_environments(dotted: str, base_dir: Path, timeout: float) -> PythonEnvironments:
    """Return the environments of a class. Raises ConfigError where it cannot be found, or lacks reset or step."""
    made = load_function(find_function(dotted, base_dir))
    for method, called in (("reset", "reset(seed=None, **columns)"), ("step", "step(text)")):
        if not callable(getattr(made, method, None)):
            raise ConfigError(f"rollout.environment: {dotted} has no method {method!r}; write a class with {called}")
    name, capacity = getattr(made, "name", None), getattr(made, "capacity", None)
    return PythonEnvironments(
        dotted,
        made,
        timeout,
        name=name if isinstance(name, str) else dotted.rpartition(".")[2],
        capacity=capacity if isinstance(capacity, int) and capacity > 0 else None,
    )


@attrs.define(eq=False)
class _PythonEnvironment:
    environments: PythonEnvironments
    beside: Beside
    _made: Any = attrs.field(default=None, init=False)

    async def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        def begin() -> Any:
            self._made = self.environments.make()
            return self._made.reset(**self._arguments(columns, seed))

        value = await self.beside.call(begin, self.environments.timeout)
        return Observation() if value is None else self._read(value, "reset")

    async def step(self, message: Message) -> Observation:
        return self._read(await self.beside.call(lambda: self._made.step(message["content"]), self.environments.timeout), "step")

    async def close(self) -> None:
        def end() -> Any:  # behind a call that was given up before it began
            close = getattr(self._made, "close", None)
            return close() if callable(close) else None

        try:
            await self.beside.call(end, self.environments.timeout)
        finally:
            self.beside.close()

    def _arguments(self, columns: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Return what `reset` takes of the seed and the row's columns, by the names of its parameters."""
        parameters = inspect.signature(self._made.reset).parameters
        given = {**columns, "seed": seed}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            named = given
        else:
            named = {name: given[name] for name in parameters if name in given}
        for name, parameter in parameters.items():
            if name not in named and parameter.default is parameter.empty and parameter.kind not in _REST:
                known = ", ".join(sorted(columns)) or "none"
                raise ConfigError(
                    f"rollout.environment: {self.environments.dotted}.reset asks for column {name!r}, which rows lack (columns: "
                    f"{known}){did_you_mean(name, columns)}"
                )
        return named

    def _read(self, value: Any, method: str) -> Observation:
        try:
            return read_observation(value)
        except ValueError as error:
            raise ValueError(f"{self.environments.dotted}.{method} returned {error}; it must return {ALLOWED}") from error


_REST = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def read_observation(value: Any) -> Observation:
    """Return what an environment's method returned as an Observation. Raises ValueError, which says what it is, for no such."""
    if isinstance(value, Observation):
        return value
    if not isinstance(value, tuple):
        return Observation(messages=_messages(value))
    if len(value) != 3:
        raise ValueError(f"a tuple of {len(value)}")
    said, reward, done = value
    if fault := reward_fault(reward):
        raise ValueError(fault)
    if done not in (True, False):
        raise ValueError(f"{done!r:.60} where `done` belongs, which is neither true nor false")
    messages = () if said is None else _messages(said)
    return Observation(messages=messages, reward=None if reward is None else float(reward), done=bool(done))


def _messages(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": value},) if value else ()
    found = [value] if isinstance(value, Mapping) else value
    if not isinstance(found, list) or not all(map(is_message, found)):
        raise ValueError(f"{type(value).__name__} {value!r:.60}")
    return tuple(dict(one) for one in found)
