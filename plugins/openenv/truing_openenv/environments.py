"""The environments of a server: one for each episode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing.data.example import Message
from truing.errors import DataError, RolloutError
from truing.rollout import Environment, Environments, Observation
from truing.threads import running_loop
from truing_openenv.actions import ActionReader
from truing_openenv.address import Address
from truing_openenv.backend import OpenEnvRollout
from truing_openenv.observations import ObservationReader, tool_answer
from truing_openenv.protocol import InvalidActionError, SessionError, Turn
from truing_openenv.schema import Description, Schema, describe
from truing_openenv.server import Server, find_room, list_tools
from truing_openenv.session import Session

MOST_SESSIONS = 64
"""Sessions at once, where neither the server nor the configuration says how many."""


@attrs.frozen(eq=False)
class OpenEnvironments(Environments):
    """What a run acts in: a server's environments. Episodes are in one event loop, which goes on while a policy writes."""

    settings: OpenEnvRollout
    server: Server
    description: Description
    actions: ActionReader
    observations: ObservationReader
    tools: Sequence[Mapping[str, Any]]
    capacity: int | None
    name: str = "openenv"

    @classmethod
    def open(cls, settings: OpenEnvRollout, timeout: float, num_ranks: int = 1) -> OpenEnvironments:
        """Ask the server what it is; each of its answers may take `timeout` seconds.

        Raises RolloutError where it does not answer, and ConfigError where settings do not fit it.
        """
        address = Address.of(settings.url)
        with running_loop("truing-openenv") as loop:  # there may be one in this thread already, as in a notebook
            try:
                asked = _ask(address, settings, timeout, num_ranks)
                description, tools, capacity = asyncio.run_coroutine_threadsafe(asked, loop).result()
            except SessionError as error:
                raise RolloutError(f"the OpenEnv server cannot be used: {error}") from error
        actions = ActionReader.of(description.action, settings.action_field)
        observations = ObservationReader.of(description.observations, settings.observation_field)
        return cls(settings, Server(address, capacity, timeout), description, actions, observations, tools, capacity)

    @property
    def about(self) -> str:
        """How the policy acts in it, in a sentence."""
        calls = ", ".join(str(tool["function"]["name"]) for tool in self.tools)
        acts = f"calls tools ({calls})" if calls else f"gives {self.actions.about}"
        return f"{self.description.name} at {self.server.address}: a turn {acts}; {self.capacity} sessions at once"

    def new(self) -> Environment:
        """Return an environment for one episode."""
        return OpenEnvironment(self)

    def close(self) -> None:
        """Break off what is open; the second time nothing is left."""
        self.server.abort()


async def _ask(
    address: Address, settings: OpenEnvRollout, timeout: float, num_ranks: int
) -> tuple[Description, Sequence[Mapping[str, Any]], int]:
    """Return what a server is, the tools that it offers, and how many sessions are this process's."""
    description = await describe(address, timeout)
    tools = await list_tools(address, timeout) if offers_tools(description.action) else ()
    return description, tools, await _share(address, settings, timeout, num_ranks)


def offers_tools(action: Schema) -> bool:
    """Return whether actions are calls of tools: those of OpenEnv's MCP environments, or of any kind."""
    return not action.fields or {"tool_name", "arguments"} <= action.fields.keys()


async def _share(address: Address, settings: OpenEnvRollout, timeout: float, num_ranks: int) -> int:
    """Return how many sessions at once are this process's."""
    wanted = settings.max_sessions or MOST_SESSIONS
    room, allowed = await find_room(address, wanted, timeout)
    if num_ranks > 1:  # other processes ask at the same time, so that what is free now says little
        room = min(wanted, allowed or wanted)
    return max(1, room // num_ranks)


@attrs.define(eq=False)
class OpenEnvironment(Environment):
    """One episode: a session of the server."""

    _all: OpenEnvironments
    _session: Session | None = attrs.field(default=None, init=False)
    _invalid: int = attrs.field(default=0, init=False)
    """Actions that could not be taken."""
    _last: Mapping[str, Any] = attrs.field(factory=dict, init=False)
    """The fields of the last observation."""

    async def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Open a session and begin. Raises DataError for a row without a column that reset needs, and SessionError."""
        missing = [name for name in self._all.settings.reset_columns if name not in columns]
        if missing:
            raise DataError(
                f"the row has no column {missing[0]!r}, which rollout.reset_columns names; it has {', '.join(columns) or 'none'}"
            )
        data = {name: columns[name] for name in self._all.settings.reset_columns}
        if self._all.settings.seed:
            data = {"seed": seed, **data}
        self._session, turn = await self._all.server.begin(data)
        text = self._all.observations(turn)
        return self._observation(turn, [{"role": "user", "content": text}] if text else [])

    async def step(self, message: Message) -> Observation:
        """Act by what the policy wrote: its text, or the tools that it calls; a turn without a call ends an episode of tools.

        Raises SessionError where the server fails.
        """
        return await (self._call_tools(message) if self._all.tools else self._act(str(message["content"])))

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._all.server.end(self._session)

    async def _take(self, action: Mapping[str, Any]) -> Turn:
        if self._session is None:
            raise SessionError("the episode has not begun; reset comes first")
        return await self._session.step(action, self._all.server.timeout)

    async def _act(self, text: str) -> Observation:
        try:
            turn = await self._take(self._all.actions(text))
        except InvalidActionError as error:
            self._invalid += 1
            return self._answer([{"role": "user", "content": f"Invalid action: {error}"}], reward=self._all.settings.invalid_reward)
        return self._observation(turn, [{"role": "user", "content": self._all.observations(turn)}])

    async def _call_tools(self, message: Message) -> Observation:
        calls = message.get("tool_calls") or ()
        messages: list[Message] = []
        rewards: list[float] = []
        done = not calls
        for call in calls:
            try:
                name, arguments = _call(call)
                turn = await self._take({"type": "call_tool", "tool_name": name, "arguments": arguments})
            except InvalidActionError as error:
                self._invalid += 1
                rewards.append(self._all.settings.invalid_reward)
                messages.append(_from_tool(call, f"error: {error}"))
                continue
            self._last = turn.fields
            messages.append(_from_tool(call, tool_answer(turn)))
            rewards += [] if turn.reward is None else [float(turn.reward)]
            if turn.done:
                done = True
                break
        return self._answer(messages, reward=sum(rewards) if rewards else None, done=done)

    def _observation(self, turn: Turn, messages: Sequence[Message]) -> Observation:
        self._last = turn.fields
        return self._answer(messages, reward=None if turn.reward is None else float(turn.reward), done=turn.done)

    def _answer(self, messages: Sequence[Message], reward: float | None = None, done: bool = False) -> Observation:
        """Return an observation that also ends the episode of a policy that has given too many invalid actions."""
        return Observation(
            messages=tuple(messages),
            reward=reward,
            done=done or self._invalid >= self._all.settings.max_invalid_actions,
            extra={"observation": self._last, "invalid_actions": self._invalid},
        )


def _call(call: Any) -> tuple[str, Mapping[str, Any]]:
    """Return name and arguments of a call of a tool. Raises InvalidActionError where it has none."""
    function = call.get("function", call)
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidActionError(f"the arguments are no JSON: {error}") from error
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise InvalidActionError("a call needs a name, and arguments that are a JSON object")
    return name, arguments


def _from_tool(call: Mapping[str, Any], content: str) -> Message:
    function = call.get("function", call)
    identity = {"tool_call_id": call["id"]} if "id" in call else {}
    return {"role": "tool", "name": str(function.get("name")), "content": content, **identity}
