"""What `truing env-check` prints."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.errors import RolloutError
from truing_openenv.environments import OpenEnvironments
from truing_openenv.observations import tool_answer
from truing_openenv.protocol import InvalidActionError, SessionError, Turn
from truing_openenv.random_actions import random_action, random_call
from truing_openenv.schema import Schema
from truing_openenv.session import Session

WIDTH = 80
MOST_CHARACTERS = 400
"""How much is shown of a text."""


def print_report(environments: OpenEnvironments, *, seed: int, turns: int, sessions: int, seconds: float) -> None:
    """Print what the environment is, an episode of random actions, and round trips a second.

    Raises RolloutError where the server fails.
    """
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    report = _Report(environments, console)
    report.print_schemas()
    try:
        report.print_episode(seed, turns)
        report.print_speed(sorted({1, min(sessions, environments.capacity or sessions)}), seconds)
    except SessionError as error:
        raise RolloutError(f"the episode ended with an error: {error}") from error


class _Report:
    def __init__(self, environments: OpenEnvironments, console: Console) -> None:
        self.environments = environments
        self.console = console

    def print_schemas(self) -> None:
        description = self.environments.description
        self.heading(f"{description.name} at {self.environments.server.address}", blank=False)
        if description.about:
            self.console.print(shown(description.about))
        if self.environments.tools:
            for tool in self.environments.tools:
                function = tool["function"]
                self.heading(f"Tool {function['name']}")
                self.console.print(shown(function["description"]))
                self.fields(Schema(function["parameters"], frozenset()))
        else:
            self.heading("Action")
            self.fields(description.action)
        for schema, name in zip(description.observations, ("Observation", "Observation of reset"), strict=False):
            if name == "Observation" or schema.fields != description.observations[0].fields:
                self.heading(name)
                self.fields(schema)
        self.heading("How it is used")
        self.console.print(shown(f"{self.environments.about}."))

    def heading(self, text: str, *, blank: bool = True) -> None:
        self.console.print(Text(("\n" if blank else "") + shown(text), style="bold"))

    def fields(self, schema: Schema) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for name, field in schema.fields.items():
            required = "required" if name in schema.required else f"default {_json(field['default'])}" if "default" in field else ""
            table.add_row(f"  {shown(name)}", shown(kind_of(field)), shown(required), shown(str(field.get("description", ""))))
        self.console.print(table if schema.fields else "  no field")

    def print_episode(self, seed: int, turns: int) -> None:
        self.heading(f"An episode of random actions, seed {seed}")
        rows, ending = asyncio.run(self._episode(seed, turns))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for row in rows:
            table.add_row(*map(shown, row))
        self.console.print(table)
        self.console.print(ending)

    async def _episode(self, seed: int, turns: int) -> tuple[list[tuple[str, str, str]], str]:
        """Return action, observation and reward of every turn, and how it ended."""
        rng, total = _random(seed), 0.0
        session, turn = await self.environments.server.begin({"seed": seed})
        try:
            rows = [("reset", self._text(turn), _reward(turn))]
            while not turn.done and len(rows) <= turns:
                action = self._action(rng)
                try:
                    turn = await session.step(action, self.environments.server.timeout)
                except InvalidActionError as error:
                    rows.append((_json(action), f"not taken: {error}", ""))
                    continue
                total += float(turn.reward or 0)
                rows.append((_json(action), self._text(turn), _reward(turn)))
        finally:
            await self.environments.server.end(session)
        steps = f"{len(rows) - 1} steps, reward {total:g} in all"
        return rows, f"{steps}; the environment ended it" if turn.done else f"{steps}; it would go on"

    def _action(self, rng: random.Random) -> dict[str, Any]:
        if self.environments.tools:
            return random_call(self.environments.tools, rng)
        return random_action(self.environments.description.action, rng)

    def _text(self, turn: Turn) -> str:
        return tool_answer(turn) if "tool_name" in turn.observation else self.environments.observations(turn)

    def print_speed(self, numbers: list[int], seconds: float) -> None:
        self.heading("Round trips a second")
        for sessions in numbers:
            trips = asyncio.run(self._trips(sessions, seconds))
            self.console.print(f"  {sessions:>3} session{'s' if sessions > 1 else ' '}  {trips / seconds:>8,.0f}")

    async def _trips(self, sessions: int, seconds: float) -> int:
        """Return how many resets and steps are answered meanwhile, in so many sessions at once."""
        ends = time.monotonic() + seconds

        async def go_on(number: int) -> int:
            server, rng = self.environments.server, _random(number)
            session, turn = await server.begin({"seed": number})
            trips = 0
            try:
                while time.monotonic() < ends:
                    turn = await self._trip(session, turn, rng)
                    trips += 1
            finally:
                await server.end(session)
            return trips

        return sum(await asyncio.gather(*map(go_on, range(sessions))))

    async def _trip(self, session: Session, turn: Turn, rng: random.Random) -> Turn:
        server = self.environments.server
        if turn.done:
            return await session.reset({"seed": rng.randrange(2**31)}, server.timeout)
        try:
            return await session.step(self._action(rng), server.timeout)
        except InvalidActionError:
            return turn


def kind_of(field: Mapping[str, Any]) -> str:
    """Return in words what a field may be."""
    choices = field.get("enum")
    if isinstance(choices, list):
        return f"one of {', '.join(map(str, choices))}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    words |= {"array": "a list", "object": "an object"}
    found = words.get(str(field.get("type")), "anything")
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds |= {"minLength": "of at least", "maxLength": "of at most", "minItems": "of at least", "maxItems": "of at most"}
    return " ".join([found, *(f"{word} {field[key]}" for key, word in bounds.items() if key in field)])


def shown(text: str) -> str:
    """Return text of a server as a terminal may have it: no control characters, and no more than can be read."""
    safe = "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text[:MOST_CHARACTERS])
    return safe if len(text) <= MOST_CHARACTERS else f"{safe} ..."


def _random(seed: int) -> random.Random:
    """Return a generator whose numbers are not those that an environment draws by the same seed."""
    return random.Random(f"actions {seed}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _reward(turn: Turn) -> str:
    return "" if turn.reward is None else f"reward {float(turn.reward):g}"
