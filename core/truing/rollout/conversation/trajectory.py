"""The tokens of an episode, put together: the one place where what must hold of them is seen to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from truing.errors import PluginError
from truing.rollout.completion import Completion, EpisodeRecord, FinishReason, Fork, RolloutRequest, Sampling, VersionSpan, cover

if TYPE_CHECKING:
    from truing.config.classes import RolloutConfig


def unlike_the_trainer(sampling: Sampling | RolloutConfig, whose: str = "a conversation's turns") -> Iterator[tuple[str, str]]:
    """Yield what makes log-probabilities other than the trainer's, which knows a temperature and no more: a key, and why."""
    for key, neutral in (("top_p", 1.0), ("top_k", 0)):
        value = getattr(sampling, key)
        if value != neutral:
            message = (
                f"is {value:g}, and the log-probabilities of {whose} must be the trainer's, which are those of all tokens; leave "
                f"it out (its neutral value is {neutral:g})"
            )
            yield key, message


@attrs.define(eq=False)
class Trajectory:
    """One row of token ids for an episode: what the policy wrote, exactly as sampled, and the context between its turns.

    A turn's tokens are counted (mask True) with the log-probabilities that the engine gave; context, which is what tools and
    environments say and what the chat template writes around it, is not (mask False, log-probability 0.0). Every token lies in a
    span of versions; context is of the version that wrote the token before it. Where history is rendered anew, `fork` puts the row
    by and begins another.
    """

    prompt_ids: tuple[int, ...]
    """All that stands before the first token that the policy wrote of this row."""
    end: int
    """Where its rows must end: most tokens of prompt and everything after it."""
    limit: int
    """Most tokens of a row after its prompt."""
    engine: str
    """Its name, for errors."""
    forks: list[Fork] = attrs.field(factory=list, init=False)
    _ids: list[int] = attrs.field(factory=list, init=False)
    _mask: list[bool] = attrs.field(factory=list, init=False)
    _logps: list[float] = attrs.field(factory=list, init=False)
    _scored: bool = attrs.field(default=True, init=False)
    """Whether the engine gave log-probabilities of every turn of this row."""
    _spans: list[VersionSpan] = attrs.field(factory=list, init=False)

    @property
    def row(self) -> tuple[int, ...]:
        """Prompt, turns and context so far: what the policy reads next."""
        return (*self.prompt_ids, *self._ids)

    @property
    def room(self) -> int:
        """How many more tokens the row may have."""
        return min(self.end - len(self.prompt_ids), self.limit) - len(self._ids)

    def add_turn(self, turn: Completion, request: RolloutRequest) -> None:
        """Append what the engine sampled for `request`. Raises PluginError where it is not what was asked for, or does not fit."""
        ids, limit = turn.token_ids, request.sampling.max_completion_length
        mask = turn.loss_mask or (True,) * len(ids)
        if turn.prompt_ids != self.row:
            raise self._fault(f"completes other prompt tokens ({len(turn.prompt_ids)}) than it was sent ({len(self.row)})")
        if not 0 < len(ids) <= limit:
            raise self._fault(f"gives a turn of {len(ids)} tokens, and it must have 1 to {limit}")
        for name, numbers in (("loss_mask", mask), ("token_logps", turn.token_logps)):
            if numbers is not None and len(numbers) != len(ids):
                raise self._fault(f"gives {len(numbers)} {name} for a turn of {len(ids)} tokens")
        logps = turn.token_logps if turn.token_logps is not None else (0.0,) * len(ids)
        for token, (logp, counts) in enumerate(zip(logps, mask, strict=True)):
            if counts and not math.isfinite(logp):
                raise self._fault(f"gives the log-probability {logp} for token {token} of a turn; it must be finite")
        self._scored = self._scored and turn.token_logps is not None
        self._add_versions(turn.versions, len(ids))
        self._ids += ids
        self._mask += mask
        self._logps += [logp if counts else 0.0 for logp, counts in zip(logps, mask, strict=True)]

    def _add_versions(self, versions: Sequence[VersionSpan], length: int) -> None:
        if not cover([(span.start, span.end) for span in versions], length):
            shown = [(span.version, span.start, span.end) for span in versions]
            raise self._fault(f"gives versions {shown} for a turn of {length} tokens; they must cover it in order without gaps")
        offset = len(self._ids)
        for span in versions:
            self._add_span(span.version, offset + span.start, offset + span.end)

    def _add_span(self, version: int, start: int, end: int) -> None:
        if self._spans and self._spans[-1].version == version:
            self._spans[-1] = attrs.evolve(self._spans[-1], end=end)
        else:
            self._spans.append(VersionSpan(version=version, start=start, end=end))

    def add_context(self, ids: Sequence[int]) -> bool:
        """Append tokens that the policy did not write, behind its turn; return False, and do not, if no turn fits behind them."""
        if len(ids) >= self.room:
            return False
        assert self._ids, "context follows a turn; what comes before the first one is the prompt"
        start = len(self._ids)
        self._ids += ids
        self._mask += [False] * len(ids)
        self._logps += [0.0] * len(ids)
        self._add_span(self._spans[-1].version, start, len(self._ids))
        return True

    def fork(self, prompt_ids: Sequence[int]) -> bool:
        """Put the row by, and begin one with these tokens: the history rendered anew, which no longer begins with the row.

        Returns False, and does not, if no turn fits behind them.
        """
        if len(prompt_ids) >= self.end:
            return False
        self.forks.append(
            Fork(
                prompt_ids=self.prompt_ids,
                token_ids=tuple(self._ids),
                loss_mask=tuple(self._mask),
                token_logps=tuple(self._logps) if self._scored else None,
                versions=tuple(self._spans),
            )
        )
        self.prompt_ids = tuple(prompt_ids)
        self._ids, self._mask, self._logps, self._spans = [], [], [], []
        self._scored = True
        return True

    def completion(
        self,
        request: RolloutRequest,
        index: int,
        finish_reason: FinishReason,
        *,
        text: str,
        rewards: Mapping[str, float],
        episode: EpisodeRecord,
        extra: Mapping[str, Any],
    ) -> Completion:
        """Return the episode as a completion of `request`."""
        return Completion(
            request_id=request.id,
            index=index,
            prompt_ids=self.prompt_ids,
            token_ids=tuple(self._ids),
            finish_reason=finish_reason,
            versions=tuple(self._spans),
            token_logps=tuple(self._logps) if self._scored else None,
            loss_mask=tuple(self._mask),
            text=text,
            columns=request.columns,
            rewards=rewards,
            forks=tuple(self.forks),
            episode=episode,
            extra=extra,
        )

    def _fault(self, problem: str) -> PluginError:
        return PluginError(f"rollout {self.engine!r} {problem}; truing.testing.check_rollout finds such faults")
