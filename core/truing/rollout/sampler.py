"""From prompts to groups of completions with their rewards: generation and scoring, one beside the other."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

import attrs

from truing.data.example import Text
from truing.data.tree import PromptTree
from truing.errors import PluginError, RolloutError, naming
from truing.rewards.runner import Pending, RewardRunner
from truing.rollout.completion import (
    Completion,
    EpisodeRecord,
    LiveRollout,
    RolloutRequest,
    Sampling,
    VersionSpan,
    cover,
    is_concurrent,
    rows_of,
)
from truing.rollout.plain import plain, well_formed
from truing.rollout.seeds import seed_of

NAN = float("nan")
ROUNDING = 1e-6
"""What two worths may differ by, as a share of the larger one, that are the same but for single precision."""
STALE_TRIES = 3
"""Times that completions of weights that are too old are drawn again at least, before a backend counts as taking no new ones."""
STALL_SECONDS = 3600.0
"""How long a prompt's completions are waited for, behind the deadlines that a backend has of its own."""


class Prompts(Protocol):
    """The prompts of a dataset of the ROLLOUT layout."""

    def __getitem__(self, index: int) -> PromptTree: ...

    def prompt(self, index: int) -> Text:
        """Return the prompt as the dataset has it."""


@attrs.frozen(kw_only=True, eq=False)
class Group:
    """The completions of one prompt that have a score, and their rewards."""

    sample_id: int
    completions: tuple[Completion, ...]
    rewards: tuple[tuple[float, ...], ...]
    """One row for each completion, one column for each reward; NaN where that does not apply."""
    lost: int
    """Completions without a score: the backend failed on them, or a reward did whose failures are left out."""
    made_up: int = 0
    """Those of the others of which a number stands for a score, for a reward failed on them."""

    @property
    def spans(self) -> Iterator[VersionSpan]:
        """The spans of versions of all rows."""
        return (span for completion in self.completions for row in rows_of(completion) for span in row.versions)

    @property
    def oldest(self) -> int | None:
        """The oldest version of the weights that sampled a token; None where the backend does not say."""
        spans = [span for one in self.completions for row in (one.versions, *(fork.versions for fork in one.forks)) for span in row]
        return min((span.version for span in spans), default=None)

    def totals(self, weights: Sequence[float]) -> list[float]:
        """Return the weighted sum of each completion's rewards; those that do not apply add nothing."""
        return [weighted_sum(row, weights) for row in self.rewards]


def all_alike(worths: Sequence[float]) -> bool | None:
    """Return whether completions are all worth the same but for rounding, without those of which nothing is known (NaN).

    None where fewer than two are known: there is nothing to compare.
    """
    known = [worth for worth in worths if worth == worth]
    if len(known) < 2:
        return None
    return max(known) - min(known) <= ROUNDING * max(map(abs, known))


def weighted_sum(rewards: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted sum of rewards, without those that do not apply (NaN); NaN where none does."""
    applying = [weight * reward for weight, reward in zip(weights, rewards, strict=True) if reward == reward]
    return sum(applying) if applying else NAN


@attrs.define(eq=False)
class Lot:
    """Groups, and what it took to get them."""

    groups: list[Group] = attrs.field(factory=list)
    resampled: int = 0
    """Groups drawn again because their completions were all worth the same."""
    stale: int = 0
    """Completions dropped because weights that are too old wrote some of them."""
    drawn: int = 0
    """Completions that were asked for, those of groups included that were drawn again."""
    failures: list[str] = attrs.field(factory=list)
    """What the backend said of those of them that it failed on."""


Sampled = Future[tuple[Completion, ...]]
"""A prompt's completions, by a concurrent backend."""
Scored = tuple[list[Completion], tuple[str, ...], Pending]
"""Of a prompt: the completions, what was said of those that failed, and the scores that are being computed of the others."""


@attrs.frozen(kw_only=True, eq=False)
class Asked:
    """Prompts of which completions are asked for."""

    prompts: Prompts
    count: int
    lot: str
    requests: Mapping[int, RolloutRequest]
    """By sample of the prompts."""
    begun: dict[int, Begun] = attrs.field(factory=dict, init=False)
    """The same, where the backend is concurrent."""

    def cancel(self) -> None:
        """Give up what is not done."""
        for begun in self.begun.values():
            begun.cancel()


class Begun:
    """Completions that a concurrent backend works on; they are scored as soon as they are there, whoever waits."""

    def __init__(self, sampled: Sampled, score: Callable[[Sampled], Scored]) -> None:
        self._sampled = sampled
        self._scored: Future[Scored] = Future()
        self._score = score
        sampled.add_done_callback(self._finish)

    def _finish(self, sampled: Sampled) -> None:
        try:
            self._scored.set_result(self._score(sampled))
        except (Exception, CancelledError) as error:  # the caller's, in another thread
            self._scored.set_exception(error)

    def result(self) -> Scored:
        """Wait for the completions. Raises what the backend raised, what is wrong with its answer, and TimeoutError without one."""
        return self._scored.result(STALL_SECONDS)

    def cancel(self) -> None:
        """Give up."""
        self._sampled.cancel()


@attrs.frozen(kw_only=True, eq=False)
class Sampler:
    """Asks a backend for completions and scores them as they come."""

    live: LiveRollout
    backend: str
    """Its name, for errors."""
    rewards: RewardRunner
    worths: Callable[[Group], Sequence[float]]
    """What the method takes each completion to be worth; NaN where that is not known."""
    tokenizer: Any
    sampling: Sampling
    seed: int
    versions_needed: bool = False
    """Whether a completion must say which weights wrote which of its tokens."""

    def ask(self, prompts: Prompts, samples: Sequence[int], count: int, lot: str, attempt: int = 0) -> Asked:
        """Ask for `count` completions of each of these prompts; a concurrent backend begins with them, and this does not wait.

        Seeds are a function of the run's seed, `lot`, the attempt, the prompt and the sample, so that a run that resumes draws the
        same.
        """
        requests = {sample: self._request(f"{lot}.{attempt}.{sample}", prompts, sample, count) for sample in samples}
        asked = Asked(prompts=prompts, count=count, lot=lot, requests=requests)
        if is_concurrent(self.live):
            for sample, request in requests.items():
                with self._naming():
                    sampled = self.live.submit(request)
                asked.begun[sample] = Begun(sampled, functools.partial(self._answered, asked, sample))
        return asked

    def sample(self, asked: Asked, *, resamplings: int = 0, oldest: int = 0) -> Lot:
        """Return the groups of what was asked for, in its order, when all are sampled and scored.

        A group whose completions are all worth the same teaches nothing and, with `resamplings`, is drawn again until they differ
        or the tries are used up; not so one of which fewer than two have a score of their own, for what failed would fail again.
        One with a token of weights before the version `oldest` is dropped and drawn again. Raises PluginError for a backend that
        does not answer as it is asked, RolloutError for one that goes on sampling from older weights, and what the backend and the
        rewards raise.
        """
        lot = Lot()
        groups = self._groups(asked, lot)
        for attempt in itertools.count(1):
            stale = [sample for sample, group in groups.items() if group.oldest is not None and group.oldest < oldest]
            if stale and attempt > resamplings + STALE_TRIES:
                raise RolloutError(
                    f"rollout {self.backend!r} still samples from weights of version {groups[stale[0]].oldest}, and none before "
                    f"{oldest} may be trained on: it does not take the weights that it is sent"
                )
            fresh = [sample for sample in groups if sample not in stale] if attempt <= resamplings else []
            again = [*stale, *(sample for sample in fresh if self._teaches_nothing(groups[sample]))]
            if not again:
                break
            lot.stale += sum(len(groups[sample].completions) for sample in stale)
            lot.resampled += len(again) - len(stale)
            groups |= self._groups(self.ask(asked.prompts, again, asked.count, asked.lot, attempt), lot)
        lot.groups = [groups[sample] for sample in asked.requests]
        return lot

    def _teaches_nothing(self, group: Group) -> bool:
        return len(group.completions) - group.made_up > 1 and all_alike(self.worths(group)) is True

    def _groups(self, asked: Asked, lot: Lot) -> dict[int, Group]:
        """Return the groups of what was asked for, by sample, and count in `lot` what was drawn for them."""
        try:
            scored = dict(self._submitted(asked) if asked.begun else self._generated(asked))
        except BaseException:
            asked.cancel()
            raise
        lot.drawn += asked.count * len(asked.requests)
        lot.failures += [failure for sample in asked.requests for failure in scored[sample][1]]
        return {sample: _group(sample, asked.count, scored[sample][0], scored[sample][2]) for sample in asked.requests}

    def _submitted(self, asked: Asked) -> Iterator[tuple[int, Scored]]:
        for place, (sample, begun) in enumerate(asked.begun.items()):
            try:
                yield sample, begun.result()
            except TimeoutError as error:
                raise RolloutError(
                    f"rollout {self.backend!r} gave no completion in {STALL_SECONDS / 60:.0f} min, with {len(asked.begun) - place} "
                    f"of {len(asked.begun)} prompts to be completed"
                ) from error

    def _request(self, id_: str, prompts: Prompts, sample: int, count: int) -> RolloutRequest:
        tree = prompts[sample]
        return RolloutRequest(
            id=id_,
            prompt=prompts.prompt(sample),
            prompt_ids=tree.prompt_ids,
            seeds=tuple(seed_of(self.seed, id_, index) for index in range(count)),
            sampling=self.sampling,
            columns=tree.columns,
        )

    def _generated(self, asked: Asked) -> Iterator[tuple[int, Scored]]:
        """Yield each prompt's completions, and the scores that are begun with as soon as all of them are there."""
        by_id = {request.id: sample for sample, request in asked.requests.items()}
        found: dict[int, list[Completion]] = {sample: [] for sample in asked.requests}
        for completion in self._answers(list(asked.requests.values())):
            sample = by_id.get(completion.request_id)
            if sample is None:
                raise self._fault(f"answers {_place(completion)}, which was not asked")
            self._check(completion, asked.requests[sample], found[sample])
            found[sample].append(completion)
            if len(found[sample]) == asked.count:
                yield sample, self._scored(asked, sample, found[sample])
        for completions in found.values():
            self._require_all(completions, asked.count)

    def _answers(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        with self._naming():
            yield from self.live.generate(requests)

    def _naming(self) -> AbstractContextManager[None]:
        return naming(f"rollout {self.backend!r} failed")

    def _answered(self, asked: Asked, sample: int, sampled: Sampled) -> Scored:
        with self._naming():
            answers = sampled.result()
        for place, completion in enumerate(answers):
            self._check(completion, asked.requests[sample], answers[:place])
        self._require_all(answers, asked.count)
        return self._scored(asked, sample, answers)

    def _scored(self, asked: Asked, sample: int, answers: Sequence[Completion]) -> Scored:
        in_order = sorted(answers, key=lambda completion: completion.index)
        failed = [one for one in in_order if one.finish_reason == "error"]
        failures = tuple(well_formed(str(one.extra.get("error", "no reason given"))) for one in failed)
        request = asked.requests[sample]
        whole = [self._with_row(one, request) for one in in_order if one.finish_reason != "error"]
        return whole, failures, self.rewards.submit(whole)

    def _check(self, completion: Completion, request: RolloutRequest, before: Sequence[Completion]) -> None:
        """Raise PluginError for an answer to nothing, a second one, or one whose parts do not fit."""
        problem = None
        if completion.request_id != request.id or not 0 <= completion.index < request.n:
            problem = f"answers {_place(completion)}, which was not asked"
        elif any(completion.index == other.index for other in before):
            problem = f"answers {_place(completion)} twice"
        elif completion.finish_reason == "error":
            return
        elif completion.prompt_ids != request.prompt_ids and not getattr(self.live, "extends_prompts", False):
            problem = "gives other prompt tokens than it was asked to complete"
        else:
            problem = _misfit(completion, self.sampling.max_completion_length) or _gap(completion, needed=self.versions_needed)
        if problem is not None:
            raise self._fault(problem)

    def _fault(self, problem: str) -> PluginError:
        return PluginError(f"rollout {self.backend!r} {problem}; truing.testing.check_rollout finds such faults")

    def _require_all(self, completions: Sequence[Completion], count: int) -> None:
        if len(completions) < count:
            raise PluginError(
                f"rollout {self.backend!r} gave {len(completions)} of {count} completions for a prompt; mend the backend, "
                'or let it yield a Completion with finish_reason "error" for what it cannot complete'
            )

    def _with_row(self, completion: Completion, request: RolloutRequest) -> Completion:
        text = completion.text or str(self.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))
        return attrs.evolve(
            completion,
            prompt=request.prompt,
            text=well_formed(text),
            columns={**request.columns, **completion.columns},
            episode=_plain_episode(completion.episode),
            extra=plain(completion.extra),
        )


def _group(sample: int, count: int, completions: Sequence[Completion], pending: Pending) -> Group:
    scored = pending.result()
    kept = [index for index, failed in enumerate(scored.failed) if not failed]
    return Group(
        sample_id=sample,
        completions=tuple(completions[index] for index in kept),
        rewards=tuple(tuple(NAN if value is None else value for value in scored.values[index]) for index in kept),
        lost=count - len(kept),
        made_up=scored.made_up,
    )


def _plain_episode(episode: EpisodeRecord | None) -> EpisodeRecord | None:
    return None if episode is None else attrs.evolve(episode, messages=tuple(map(plain, episode.messages)))


def _place(completion: Completion) -> str:
    return f"{completion.request_id!r}[{completion.index}]"


def _misfit(completion: Completion, limit: int) -> str | None:
    length = len(completion.token_ids)
    if not 0 < length <= limit:
        return f"gives a completion of {length} tokens, and it must have 1 to {limit}"
    for name in ("token_logps", "loss_mask"):
        numbers = getattr(completion, name)
        if numbers is not None and len(numbers) != length:
            return f"gives {len(numbers)} {name} for {length} tokens"
    if completion.loss_mask is not None and not any(completion.loss_mask):
        return "gives a completion of which no token is counted"
    return None


def _gap(completion: Completion, *, needed: bool) -> str | None:
    spans = [(span.start, span.end) for span in completion.versions]
    if cover(spans, len(completion.token_ids)) or not (needed or spans):
        return None
    shown = [(span.version, span.start, span.end) for span in completion.versions]
    return f"gives versions {shown} for {len(completion.token_ids)} tokens, and they must cover these in order without gaps"
