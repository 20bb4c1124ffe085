"""Calls the rewards of a run: in parallel, each call under its deadline, and counts what their failures cost."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

from truing.context import OpenContext
from truing.errors import TruingError, naming
from truing.rewards.contract import DefaultReward, EnvironmentReward, prepare
from truing.rewards.local import LocalReward
from truing.rewards.pool import CallError, Log, Pool
from truing.rewards.scoring import Outcome
from truing.rewards.sources import Source, source_of
from truing.rollout.completion import Completion
from truing.threads import end_tasks, running_loop

if TYPE_CHECKING:
    from truing.config.classes import RewardEntry

MEMORY_MB = 4096
"""What a worker process may allocate, unless told otherwise: much for a function, little beside a model that trains."""
MOST_WORKERS = 4
"""How many worker processes there are where nothing else is said, on a machine with as many CPUs."""
SINGLE_FAILURES = 3
"""How many completions of a failed call may fail alone, when the time of another call is over, before the others are given up."""
LEAST_SHARE = 1.0
"""Seconds that a completion gets alone at least, if the whole deadline is as long."""
LOG = "rewards.log"

Caller = Callable[[Sequence[Completion], float], Awaitable[Outcome]]


@attrs.frozen
class Scored:
    """The scores of B completions by R rewards."""

    values: tuple[tuple[float | None, ...], ...]
    """[B][R]; None where a reward does not apply, and where its call failed."""
    failed: tuple[bool, ...]
    """[B]: some reward with on_error "mask" failed on it: the sample is to be left out."""
    errors: Mapping[str, int]
    """By reward: how many samples have no score of its own because calls failed."""
    messages: Mapping[str, str]
    """By reward with such samples: what the first failure was."""
    made_up: int = 0
    """Samples of which a number stands for a score, as on_error says, and that are not to be left out."""


class Pending:
    """Scores that are being computed."""

    def __init__(self, scored: Future[Scored], count: Callable[[Scored], None]) -> None:
        self._scored = scored
        self._count: Callable[[Scored], None] | None = count

    def done(self) -> bool:
        """Return whether `result` would not wait."""
        return self._scored.done()

    def result(self) -> Scored:
        """Return the scores. Raises TruingError for a failure of a reward with on_error "fail", and where no process can start.

        Waits for calls that are each under a deadline, those before them in the queue included.
        """
        scored = self._scored.result()
        if self._count is not None:
            self._count(scored)
            self._count = None
        return scored


class RewardRunner:
    """The rewards of a run, as a context manager.

    Rewards that were named run in worker processes. What only this process has, because it was handed over as a function or is
    defined in a notebook, and what is opened, such as a model, is called in threads of this process. A call that raises, hangs or
    ends its process is made again for one completion at a time, so that only those at fault fail, unless the reward compares the
    completions of a call.
    """

    def __init__(
        self,
        entries: Sequence[RewardEntry],
        context: OpenContext,
        *,
        workers: int | None = None,
        memory_mb: int | None = MEMORY_MB,
    ) -> None:
        self.entries = tuple(entries)
        self.context = context
        self.workers = workers or min(MOST_WORKERS, _cpus())
        self.memory = None if memory_mb is None else memory_mb * 2**20
        self.names = _unique([entry.reward.name for entry in entries])
        """One for each entry; a second reward of the same name has a number behind it."""
        self._callers: list[Caller] = []
        self._log = Log(context.run_dir / LOG)
        self._stack = ExitStack()
        self._loop: asyncio.AbstractEventLoop
        self._tally = [0] * (1 + len(self.entries))
        self._messages: dict[str, str] = {}

    def __enter__(self) -> RewardRunner:
        """Open what is to be opened, and start a first process.

        Raises ConfigError for a reward that cannot be loaded, and PluginError for one that fails as it is opened.
        """
        with ExitStack() as stack:
            self._loop = stack.enter_context(running_loop("truing-rewards"))
            sources = [_source(entry.reward) for entry in self.entries]
            pool = self._pool([source for source in sources if source is not None])
            stack.callback(self._end, pool)
            if pool.start.sources:
                self._run(pool.load())
            place = 0
            for entry, name, source in zip(self.entries, self.names, sources, strict=True):
                if source is not None:
                    self._callers.append(functools.partial(pool.call, place))
                    place += 1
                    continue
                reward: Any = entry.reward
                with naming(f"opening reward {name!r} failed"):
                    live = stack.enter_context(reward.open(self.context)) if hasattr(reward, "open") else reward
                    prepare(live)
                local = LocalReward(name, live, any(getattr(one, "compares", False) for one in (reward, live)))
                stack.callback(local.close)
                self._callers.append(local.call)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give up what is pending, end all processes, close what was opened."""
        self._stack.close()
        self._callers.clear()

    def submit(self, completions: Sequence[Completion]) -> Pending:
        """Begin to score completions, a group or several, with every reward; does not wait.

        All of them go to a reward in one call. A reward that compares completions compares these.
        """
        return Pending(asyncio.run_coroutine_threadsafe(self._score(tuple(completions)), self._loop), self._count)

    def end_batch(self, summed: Callable[[Sequence[int]], Sequence[int]] = lambda counts: counts) -> dict[str, float]:
        """Return `rewards/<name>/error_rate` of the results taken since the last call: the share of samples without a score.

        `summed` adds the counts of all ranks, so that all stop together. Raises TruingError when a rate is above the entry's
        max_error_rate.
        """
        samples, *errors = summed(self._tally)
        messages, self._messages = self._messages, {}
        self._tally = [0] * len(self._tally)
        rates = [count / max(1, samples) for count in errors]
        for entry, name, count, rate in zip(self.entries, self.names, errors, rates, strict=True):
            if rate > entry.max_error_rate:
                first = messages.get(name, "on another rank")
                raise TruingError(
                    f"reward {name!r} has no score for {count} of {samples} samples, more than its max_error_rate "
                    f"{entry.max_error_rate:g} allows; the first failure: {first}. {self.log} has what rewards printed"
                )
        return {f"rewards/{name}/error_rate": rate for name, rate in zip(self.names, rates, strict=True)}

    @property
    def log(self) -> Path:
        """The file with what worker processes print, tracebacks of failed calls included, and a line for each call that failed."""
        return self._log.path

    def _count(self, scored: Scored) -> None:
        """Add to what `end_batch` reports: from the caller's thread, so that results not asked for yet belong to the next batch."""
        self._tally[0] += len(scored.values)
        for place, name in enumerate(self.names):
            self._tally[1 + place] += scored.errors.get(name, 0)
        self._messages = {**scored.messages, **self._messages}

    def _pool(self, sources: Sequence[Source]) -> Pool:
        return Pool(sources, workers=self.workers, memory=self.memory, seed=self.context.seed, log=self._log)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self, pool: Pool) -> None:
        self._run(end_tasks(pool.close))

    async def _score(self, completions: Sequence[Completion]) -> Scored:
        outcomes = await asyncio.gather(*(self._outcome(place, completions) for place in range(len(self.entries))))
        columns = [self._column(place, outcome, completions) for place, outcome in enumerate(outcomes)]
        masking = [
            outcome.faults if entry.on_error == "mask" else {} for entry, outcome in zip(self.entries, outcomes, strict=True)
        ]
        faulty = {name: outcome.faults for name, outcome in zip(self.names, outcomes, strict=True) if outcome.faults}
        for name, faults in faulty.items():
            row, fault = next(iter(faults.items()))
            where = f"{len(faults)} of {len(completions)} completions of {completions[row].request_id}"
            self._log.note(f"reward {name!r}: no score for {where}: {fault}")
        failed = tuple(any(row in faults for faults in masking) for row in range(len(completions)))
        return Scored(
            values=tuple(tuple(column[row] for column in columns) for row in range(len(completions))),
            failed=failed,
            errors={name: len(faults) for name, faults in faulty.items()},
            messages={name: next(iter(faults.values())) for name, faults in faulty.items()},
            made_up=sum(not failed[row] for row in {row for faults in faulty.values() for row in faults}),
        )

    def _column(self, place: int, outcome: Outcome, completions: Sequence[Completion]) -> Sequence[float | None]:
        """Return the scores, failures as on_error has them. Raises TruingError where that is "fail"."""
        on_error = self.entries[place].on_error
        if on_error == "mask":
            return outcome.scores
        if on_error == "fail":
            for row, fault in outcome.faults.items():
                one = completions[row]
                raise TruingError(
                    f"reward {self.names[place]!r} failed on sample {one.index} of {one.request_id}: {fault}. {self.log} has what "
                    "rewards printed; on_error: mask leaves such samples out, a number scores them"
                )
            return outcome.scores
        return [float(on_error) if row in outcome.faults else score for row, score in enumerate(outcome.scores)]

    async def _outcome(self, place: int, completions: Sequence[Completion]) -> Outcome:
        timeout = self.entries[place].timeout
        try:
            return await self._callers[place](completions, timeout)
        except CallError as error:
            if error.retry and len(completions) > 1:
                return await self._one_by_one(self._callers[place], completions, timeout)
            return Outcome((None,) * len(completions), dict.fromkeys(range(len(completions)), str(error)))

    async def _one_by_one(self, call: Caller, completions: Sequence[Completion], timeout: float) -> Outcome:
        """Score each completion by itself, all of them within about the time of one more call, to find those at fault."""
        end = self._loop.time() + timeout
        share = max(timeout / len(completions), min(timeout, LEAST_SHARE))
        scores: list[float | None] = []
        faults: dict[int, str] = {}
        for row, completion in enumerate(completions):
            if len(faults) >= SINGLE_FAILURES and self._loop.time() >= end:
                rest = range(row, len(completions))
                return Outcome((*scores, *(None for _ in rest)), {**faults, **dict.fromkeys(rest, next(iter(faults.values())))})
            try:
                one = await call((completion,), share)
            except CallError as error:
                one = Outcome((None,), {0: str(error)})
            scores.append(one.scores[0])
            if one.faults:
                faults[row] = one.faults[0]
        return Outcome(tuple(scores), faults)


def _source(reward: Any) -> Source | None:
    """Return where a reward that a worker can run is; core's own are not worth a process."""
    return None if isinstance(reward, (DefaultReward, EnvironmentReward)) or hasattr(reward, "open") else source_of(reward)


def _cpus() -> int:
    """Return how many CPUs this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, the second of a kind with -2 behind it, and so on."""
    counts = [names[:place].count(name) for place, name in enumerate(names)]
    return tuple(f"{name}-{count + 1}" if count else name for name, count in zip(names, counts, strict=True))
