"""One episode: the policy's turns, and what its tools and its environment answer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs

from truing.data.example import Message
from truing.errors import ConfigError, RolloutError, RowError, first_line
from truing.rollout.completion import Completion, EpisodeRecord, FinishReason, RolloutRequest
from truing.rollout.conversation.rendering import Renderer
from truing.rollout.conversation.tools import Call, Toolbox, TurnReader, tool_name
from truing.rollout.conversation.trajectory import Trajectory
from truing.rollout.environment import Environment, Environments, Observation
from truing.rollout.seeds import seed_of
from truing.threads import DeadlineError

GRACE_SECONDS = 2.0
"""How much longer than `environment_timeout` an environment is waited for, which may itself say that something was late."""

Sample = Callable[[RolloutRequest], Awaitable[Completion]]
"""Completes one turn."""


class EpisodeError(Exception):
    """What ended an episode that is to be left out of training."""


@attrs.frozen(eq=False, kw_only=True)
class Stage:
    """What all episodes of a run have in common."""

    engine: str
    """The name of the backend that writes the policy's turns."""
    reader: TurnReader
    toolbox: Toolbox
    environments: Environments | None
    max_turns: int
    max_turn_length: int | None
    timeout: float
    """Seconds that the environment may take to answer."""
    context_length: int | None
    """Positions that the policy was made for."""

    @cached_property
    def offered(self) -> frozenset[str]:
        """The names of the tools that the environment itself answers."""
        return frozenset(map(tool_name, self.environments.tools if self.environments is not None else ()))


@attrs.define(eq=False, kw_only=True)
class Episode:
    """One sample of a request, acted out."""

    stage: Stage
    request: RolloutRequest
    index: int
    """Which of the request's samples it is."""
    renderer: Renderer
    sample: Sample
    environment: Environment | None = attrs.field(init=False)
    said: list[Message] = attrs.field(factory=list, init=False)
    """All messages behind the request's prompt."""
    written: list[str] = attrs.field(factory=list, init=False)
    """What the policy wrote, turn by turn."""
    rewards: list[float] = attrs.field(factory=list, init=False)
    """The steps' rewards so far."""

    def __attrs_post_init__(self) -> None:
        environments = self.stage.environments
        self.environment = None if environments is None else environments.new()

    async def play(self) -> Completion:
        """Return the episode as a completion; of finish_reason "error", with `extra["error"]`, where its environment failed.

        The environment is closed whatever happens. Raises what the engine raises, and ConfigError.
        """
        try:
            completion = await self._played()
        except EpisodeError as error:
            completion = self._failed(str(error))
        except BaseException:
            await self._close()
            raise
        problem = await self._close()
        return attrs.evolve(completion, extra={**completion.extra, "close_error": problem}) if problem else completion

    def _failed(self, error: str) -> Completion:
        return Completion(
            request_id=self.request.id,
            index=self.index,
            prompt_ids=self.request.prompt_ids,
            token_ids=(),
            finish_reason="error",
            columns=self.request.columns,
            episode=self._record(),
            extra={"error": error},
        )

    async def _played(self) -> Completion:
        observation = await self._reset()
        if observation.done:
            raise EpisodeError("the environment was done before the first turn")
        trajectory = self._begin(observation)
        reason: FinishReason = "length"
        for turn in range(self.stage.max_turns):
            sampled = await self._take_turn(trajectory, turn)
            is_cut = sampled.finish_reason == "length"
            is_last = trajectory.room < 1 or turn + 1 == self.stage.max_turns
            observation = await self._react(sampled, turn, is_last=is_last)
            goes_on = not (observation.done or is_last) and self._go_on(trajectory, observation.messages, is_cut=is_cut)
            self.said += observation.messages
            if observation.done and not (is_cut and (self.environment is None or trajectory.room < 1)):
                reason = "stop"
            if not goes_on:
                break
        return trajectory.completion(
            self.request,
            self.index,
            reason,
            text="\n".join(self.written),
            rewards=self._summed(),
            episode=self._record(),
            extra=observation.extra,
        )

    def _record(self) -> EpisodeRecord:
        return EpisodeRecord(turns=len(self.written), messages=tuple(self.said))

    def _begin(self, observation: Observation) -> Trajectory:
        """Return the trajectory before the first turn."""
        try:
            prompt_ids = self.renderer.begin(self.request, observation.messages)
        except RowError as error:
            raise EpisodeError(str(error)) from error
        self.said += observation.messages
        most, limit = self.stage.context_length, self.request.sampling.max_completion_length
        end = len(prompt_ids) + limit if most is None else min(len(prompt_ids) + limit, most)
        if end <= len(prompt_ids):
            raise EpisodeError(f"the prompt has {len(prompt_ids)} tokens, and the policy was made for {most} in all")
        return Trajectory(prompt_ids, end=end, limit=limit, engine=self.stage.engine)

    async def _take_turn(self, trajectory: Trajectory, turn: int) -> Completion:
        """Let the policy write a turn, and return it. Raises EpisodeError where it could not be sampled."""
        longest = min(trajectory.room, self.stage.max_turn_length or trajectory.room)
        asked = RolloutRequest(
            id=f"{self.request.id}/{self.index}.{turn}",
            prompt_ids=trajectory.row,
            seeds=(turn_seed(self.request.seeds[self.index], turn),),
            sampling=attrs.evolve(self.request.sampling, max_completion_length=longest),
            prompt=self.request.prompt,
            columns=self.request.columns,
        )
        sampled = await self.sample(asked)
        if sampled.finish_reason == "error":
            raise EpisodeError(str(sampled.extra.get("error", "the engine could not complete a turn")))
        trajectory.add_turn(sampled, asked)
        return sampled

    async def _react(self, sampled: Completion, turn: int, *, is_last: bool) -> Observation:
        """Return what the tools and the environment answer to a turn; of the last one, no answer of a tool would be read."""
        reader, toolbox = self.stage.reader, self.stage.toolbox
        message, calls = reader.read(sampled.token_ids, sampled.prompt_ids, turn)
        self.said.append(message)
        self.written.append(reader.text(sampled.token_ids))
        ours = [call for call in calls if call.fault or call.name not in self.stage.offered]
        answers: Sequence[Message] = () if is_last else await asyncio.gather(*(toolbox.answer(call) for call in ours))
        if self.environment is None:
            return Observation(messages=tuple(answers), done=not calls)
        if calls and len(ours) == len(calls):
            return Observation(messages=tuple(answers))
        observation = await self._step(_without(message, ours))
        return attrs.evolve(observation, messages=(*answers, *observation.messages))

    async def _reset(self) -> Observation:
        if self.environment is None:
            return Observation()
        # the same for all samples of a group, which are compared with each other; and small enough for any generator
        seed = self.request.seeds[0] % 2**31
        return await self._asked(self.environment.reset(copy.deepcopy(self.request.columns), seed), "reset")

    async def _step(self, message: Message) -> Observation:
        assert self.environment is not None
        return await self._asked(self.environment.step(message), "step")

    async def _asked(self, answer: Awaitable[Observation], method: str) -> Observation:
        """Return what the environment answers. Raises EpisodeError for what it raises, when it is late, and for no observation."""
        try:
            async with asyncio.timeout(self.stage.timeout + GRACE_SECONDS) as deadline:
                observation = await answer
            fault = observation.fault
        except (ConfigError, RolloutError):
            raise
        except Exception as error:
            if isinstance(error, DeadlineError) or (isinstance(error, TimeoutError) and deadline.expired()):
                raise EpisodeError(f"the environment's {method} gave no answer within {self.stage.timeout:g} s") from error
            raise EpisodeError(f"the environment's {method} failed: {first_line(error)}") from error
        if fault:
            raise EpisodeError(f"the environment's {method} gave {fault}")
        if observation.reward is not None:
            self.rewards.append(float(observation.reward))
        return observation

    def _go_on(self, trajectory: Trajectory, messages: Sequence[Message], *, is_cut: bool) -> bool:
        """Append the messages behind the policy's turn, or render all anew; return False where no room is left for a turn."""
        if not messages:
            raise EpisodeError("the environment answered nothing, and is not done")
        closing = self.renderer.turn_end if is_cut else ()
        prompt = self.request.prompt
        history = [*(() if isinstance(prompt, str) else prompt), *self.said]
        try:
            follows = self.renderer.go_on((*trajectory.row, *closing), history, messages)
        except RowError as error:
            raise EpisodeError(str(error)) from error
        if follows.anew:
            return trajectory.fork(follows.ids)
        return trajectory.add_context((*closing, *follows.ids))

    def _summed(self) -> Mapping[str, float]:
        environments = self.stage.environments
        return {environments.name: sum(self.rewards, start=0.0)} if environments is not None else {}

    async def _close(self) -> str:
        """Close the environment; return what went wrong, "" for nothing. A cancellation waits for the end of it."""
        if self.environment is None:
            return ""
        closing = asyncio.ensure_future(self._closed(self.environment))
        try:
            return await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _closed(self, environment: Environment) -> str:
        try:
            async with asyncio.timeout(self.stage.timeout + GRACE_SECONDS):
                await environment.close()
        except Exception as error:
            return first_line(error)
        return ""


def _without(message: Message, calls: Sequence[Call]) -> Message:
    """Return a message without those of its calls that were answered already."""
    answered = {call.id for call in calls}
    left = [call for call in message.get("tool_calls", ()) if call["id"] not in answered]
    rest: dict[str, Any] = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "tool_calls": left} if left else rest


def turn_seed(seed: int, turn: int) -> int:
    """Return the seed of a turn: the sample's own for the first, and one that follows from it for each later one."""
    return seed if turn == 0 else seed_of(seed, "turn", turn)
