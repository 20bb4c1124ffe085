"""The rollout backend `openenv`: its settings."""

from __future__ import annotations

from typing import ClassVar

import attrs

from truing import LiveRollout, OpenContext, Rollout, setting
from truing.config.classes import DEFAULT_ROLLOUT
from truing.rollout import Environments
from truing_openenv.address import Address


@attrs.frozen(kw_only=True)
class OpenEnvRollout(Rollout):
    """Acts in an OpenEnv server over its WebSocket protocol, one session for each episode; an engine writes the policy's turns."""

    name: ClassVar[str] = "openenv"

    url: str = setting(help="Address of the server, such as http://127.0.0.1:8000.")
    engine: Rollout | None = setting(
        None, help="What samples the policy's turns: a rollout backend, by name or mapping; null is transformers."
    )
    action_field: str | None = setting(
        None, help="Field of the action that gets what the policy wrote; null: the only one, or all of them from a JSON object."
    )
    observation_field: str | None = setting(
        None, help="Field of the observation that the policy reads; null: the only one, or all of them as JSON."
    )
    reset_columns: tuple[str, ...] = setting(
        (), help="Columns of the row that reset gets under their own names, such as split and index of a task."
    )
    seed: bool = setting(True, help="Give reset the episode's seed; the completions of a prompt have the same.")
    max_sessions: int | None = setting(
        None, gt=0, help="Most sessions at once, of all processes; null is what the server allows, up to 64."
    )
    invalid_reward: float = setting(0.0, help="What an action is worth that cannot be taken.")
    max_invalid_actions: int = setting(
        8, gt=0, help="An episode ends with so many actions that cannot be taken; those before are answered with what is wrong."
    )

    def __attrs_post_init__(self) -> None:
        """Raise ValueError for an address that is none, and for an engine that acts in an environment itself."""
        Address.of(self.url)
        if hasattr(self.engine, "open_environments"):
            raise ValueError("engine acts in an environment itself; name a backend that samples, such as transformers or vllm")

    def open(self, context: OpenContext) -> LiveRollout:
        """Return the live engine."""
        from truing.registry import Registry

        engine: Rollout = self.engine or Registry.load(quiet=True).get("rollout", DEFAULT_ROLLOUT)()
        return engine.open(context)

    def open_environments(self, context: OpenContext) -> Environments:
        """Return the server's environments.

        Raises RolloutError where the server cannot be reached or does not speak the protocol, and ConfigError where a setting does
        not fit its schema.
        """
        from truing_openenv.environments import OpenEnvironments

        return OpenEnvironments.open(self, context.environment_timeout, context.num_ranks)
