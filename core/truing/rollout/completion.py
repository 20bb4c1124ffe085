"""What a rollout backend is asked and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeGuard

import attrs

from truing.context import OpenContext
from truing.data.example import Text
from truing.settings import setting

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length", "error"]


@attrs.frozen(kw_only=True)
class Sampling:
    """How tokens are drawn."""

    max_completion_length: int = setting(256, gt=0, help="Most tokens a completion may have.")
    temperature: float = setting(1.0, ge=0, help="Softmax temperature; 0 is greedy.")
    top_p: float = setting(1.0, gt=0, le=1, help="Nucleus: smallest set of tokens with at least this probability; 1 is off.")
    top_k: int = setting(0, ge=0, help="Draw from the k most probable tokens; 0 is off.")


@attrs.frozen(kw_only=True)
class RolloutRequest:
    """One prompt to complete `len(seeds)` times: one seed per sample, so that a sample does not depend on its batch."""

    id: str
    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling = Sampling()
    prompt: Text = ""
    """The prompt as the dataset has it, text or messages, for conversations."""
    columns: Mapping[str, Any] = attrs.field(factory=dict)
    """The row's extra columns, for environments."""

    @property
    def n(self) -> int:
        """How many completions are asked for."""
        return len(self.seeds)


@attrs.frozen(kw_only=True)
class VersionSpan:
    """Tokens `start` (included) to `end` (excluded) were sampled from weights `version`."""

    version: int
    start: int
    end: int


def cover(spans: Sequence[tuple[int, int]], length: int) -> bool:
    """Return whether spans, by start and end, cover so many tokens in order without gaps."""
    ends = [0, *(end for _, end in spans)]
    return [start for start, _ in spans] == ends[:-1] and ends[-1] == length and ends == sorted(ends)


@attrs.frozen(kw_only=True)
class Fork:
    """An earlier row of an episode: what the policy wrote before the chat template rendered its history anew, differently."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    token_logps: tuple[float, ...] | None = None
    versions: tuple[VersionSpan, ...] = ()
    """All as a completion's."""


@attrs.frozen(kw_only=True)
class EpisodeRecord:
    """What was said in an episode of several turns."""

    turns: int
    """How many the policy wrote."""
    messages: tuple[Mapping[str, Any], ...]
    """All behind the request's prompt: the policy's, its tools' and its environment's."""


@attrs.frozen(kw_only=True)
class Completion:
    """One sampled completion. Token ids are exactly as sampled, never re-tokenised."""

    request_id: str
    index: int
    """Which of the request's samples this is."""
    prompt_ids: tuple[int, ...]
    """Those of the request; of an episode, all that stands before the first token that the policy wrote."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...] = ()
    token_logps: tuple[float, ...] | None = None
    """The sampler's log-probability of each token; None when it has none, and the trainer scores them."""
    loss_mask: tuple[bool, ...] | None = None
    """False on tokens that the policy did not write (tools, environments); None counts all."""
    prompt: Any = ""
    """The prompt as the dataset has it, text or messages, for rewards."""
    text: str = ""
    """The completion decoded without special tokens, for rewards."""
    columns: Mapping[str, Any] = attrs.field(factory=dict)
    """The row's extra columns (solution, answer ...), for rewards."""
    rewards: Mapping[str, float] = attrs.field(factory=dict)
    """What an environment rewarded the episode with, by name; the reward `environment` hands it on."""
    forks: tuple[Fork, ...] = ()
    """Earlier rows of the same episode, which learn from its advantage."""
    episode: EpisodeRecord | None = None
    """Of an episode, with tools or in an environment: what was said; None for a completion of one turn."""
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """What else a backend or an environment tells; it reaches rewards as plain data."""


def rows_of(completion: Completion) -> Iterator[Completion | Fork]:
    """Yield all rows of an episode in their order, of any other completion itself."""
    yield from completion.forks
    yield completion


class WeightSource(Protocol):
    """Where a rollout backend takes new weights from; the same on every rank.

    Where weights are spread over ranks, each call is one of all ranks together, and every rank must exhaust `parameters()`.
    """

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every parameter by its Hugging Face name, gathered to full size, adapters merged."""

    def adapter(self) -> Path | None:
        """Return a folder with the adapter alone, as peft saves it; None when the whole model is trained."""

    def next_logps(self, ids: Sequence[int]) -> torch.Tensor:
        """Return [len(ids), V] log-probabilities of every token as the one after each of `ids`, by which weights are known."""


class LiveRollout(Protocol):
    """An opened rollout backend.

    One that has `about`, a sentence on how it samples, has it said at the start of the run. One with `extends_prompts = True` may
    give completions whose `prompt_ids` are not the request's, for an environment's first words stand before the policy's.
    """

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield `n` completions for every request, as they finish, in any order; a failed one has finish_reason "error"."""

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Sample from `version` from now on. Called on all ranks."""

    def close(self) -> None:
        """Let go of everything; called once, whatever happened before."""


class ConcurrentRollout(LiveRollout, Protocol):
    """A live backend that samples beside the process that trains, such as a server: it takes requests while it works on others."""

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        """Begin to complete a request; the future has its completions, in the order of its seeds.

        May be called from any thread, also while weights change: tokens sampled before and after are in spans of their versions.
        Cancelling the future stops the work on it. It raises RolloutError where the backend cannot go on.
        """


def is_concurrent(live: LiveRollout) -> TypeGuard[ConcurrentRollout]:
    """Return whether a backend takes requests while it works on others."""
    return hasattr(live, "submit")


def generate_by_submitting(live: ConcurrentRollout, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
    """Yield the completions of all requests, those of one together as soon as all of them are there.

    What is not done when the caller leaves is cancelled. Raises what `submit` and its futures do, which have deadlines.
    """
    futures = [live.submit(request) for request in requests]
    try:
        for future in as_completed(futures):
            yield from future.result()
    finally:
        for future in futures:
            future.cancel()


class Rollout(Protocol):
    """A rollout backend: an attrs class of settings whose `open` makes the live one.

    One that samples in an environment of its own has a method `open_environments(self, context: OpenContext) -> Environments`
    (truing.rollout.environment) beside `open`, whose backend then is what writes the policy's turns.
    """

    name: ClassVar[str]

    def open(self, context: OpenContext) -> LiveRollout:
        """Return the live backend for this run."""
