"""What a reward is: the protocols, and core's own `default` and `environment`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Protocol

import attrs

from truing.errors import PluginError
from truing.rollout.completion import Completion
from truing.settings import setting

if TYPE_CHECKING:
    from truing.context import OpenContext

Scores = Sequence[float | None]

DEFAULT_WARNING = "reward `default` returns 0.0 for every completion: nothing will be learned; name a reward under `rewards`"
"""What a run says loudly, in `truing check` and at its start, when `default` is its only reward."""


class Reward(Protocol):
    """Scores completions: an attrs class of settings. None means that the reward does not apply to that completion.

    A class variable `compares = True` says that a score depends on the other completions of the call: they are then never called
    one by one to find the one on which a call fails. A method `prepare(self) -> None` is called once in each process that calls the
    reward, before a run starts or the first call is timed: for imports that take long, and to raise SetupError for what the machine
    lacks.
    """

    name: ClassVar[str]

    def __call__(self, completions: Sequence[Completion]) -> Scores | Awaitable[Scores]:
        """Return one number, or None, for each completion, in order."""


class OpenedReward(Protocol):
    """A reward that keeps something alive, such as a model: an attrs class of settings that is opened once for a run.

    One that scores with a language model may name its folder as `critic_start`: a critic begins as it.
    """

    name: ClassVar[str]

    def open(self, context: OpenContext) -> AbstractContextManager[Callable[[Sequence[Completion]], Scores | Awaitable[Scores]]]:
        """Return a context manager that yields what is called with completions, as a Reward is."""


def prepare(reward: object) -> None:
    """Call a reward's `prepare`, where it has one."""
    getattr(reward, "prepare", lambda: None)()


@attrs.frozen(kw_only=True)
class EnvironmentReward:
    """The sum of what the environment rewarded an episode with, 0.0 where it rewarded nothing; not for completions without one."""

    name: ClassVar[str] = "environment"
    key: str | None = setting(None, help="Which of the environment's rewards; null where it gives one alone.")

    def __call__(self, completions: Sequence[Completion]) -> Scores:
        """Return each episode's reward. Raises PluginError where it is not clear which, or `key` is none of them."""
        return [self._score(completion.rewards) for completion in completions]

    def _score(self, rewards: Mapping[str, float]) -> float | None:
        if not rewards:
            return None
        names = ", ".join(sorted(rewards))
        if self.key is None and len(rewards) > 1:
            raise PluginError(f"the environment gives several rewards ({names}); set `key` of the reward `environment` to one")
        if self.key is not None and self.key not in rewards:
            raise PluginError(f"key {self.key!r} of the reward `environment` is none of the environment's ({names})")
        return rewards[next(iter(rewards)) if self.key is None else self.key]


@attrs.frozen(kw_only=True)
class DefaultReward:
    """0.0 for every completion: it lets a run without a reward start, and nothing is learned."""

    name: ClassVar[str] = "default"

    def __call__(self, completions: Sequence[Completion]) -> Scores:
        """Return zeros."""
        return [0.0] * len(completions)
