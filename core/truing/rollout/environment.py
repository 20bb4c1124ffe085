"""What a policy acts in: one environment for each episode, which is spoken to in messages, never in tokens."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs

from truing.data.example import Message


@attrs.frozen(kw_only=True)
class Observation:
    """What an environment answers: what the policy reads next, and how it is doing."""

    messages: tuple[Message, ...] = ()
    """Each with a role, such as user or tool, and content."""
    reward: float | None = None
    """What this step is worth; an episode's reward is the sum of its steps'. None for no reward."""
    done: bool = False
    """Whether the episode is over."""
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """Whatever is to be found in the completion's `extra` when the episode ends here."""

    @property
    def fault(self) -> str:
        """What is wrong with it; "" for nothing."""
        messages: Any = self.messages  # a user's, who may have put anything there
        extra: Any = self.extra
        for message in messages:
            if not is_message(message):
                return f"{type(message).__name__} {message!r:.60} as a message, which must be a dict with `role` and `content`"
        if not isinstance(extra, Mapping):
            return f"{type(extra).__name__} {extra!r:.60} as extra, which must be a dict"
        return reward_fault(self.reward)


def is_message(value: Any) -> bool:
    """Return whether it is a mapping with a role and content."""
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def reward_fault(reward: Any) -> str:
    """Return what is wrong with the reward of a step; "" for nothing."""
    if reward is None or (isinstance(reward, numbers.Real) and math.isfinite(reward)):
        return ""
    return f"the reward {reward!r:.60}, which is no finite number"


class Environment(Protocol):
    """One episode. What its methods raise ends the episode, which is left out of training and counted, not scored 0.

    ConfigError and RolloutError alone end the run: for what the user must mend, and where no episode can go on.
    """

    async def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Begin, with the row's extra columns; the same columns and seed begin alike. Called once, first."""

    async def step(self, message: Message) -> Observation:
        """Take what the policy wrote, a message of the assistant with its content and, where it calls tools, `tool_calls`."""

    async def close(self) -> None:
        """Let go of what the episode holds. Called once, whatever happened before."""


class Environments(Protocol):
    """Where a run's environments come from."""

    name: str
    """What the episode's reward is called."""
    capacity: int | None
    """How many episodes may be open at once; None for any number."""
    tools: Sequence[Mapping[str, Any]]
    """Schemas of the tools that it offers, as chat templates read them."""

    def new(self) -> Environment:
        """Return an environment for one episode."""

    def close(self) -> None:
        """Let go of everything. Called once, whatever happened before."""
