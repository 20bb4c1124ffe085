"""From prompts to groups of completions with their rewards: generation and scoring, one beside the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from truing.data.example import Text
from truing.data.tree import PromptTree
from truing.errors import PluginError
from truing.rewards.runner import Pending, RewardRunner
from truing.rollout.completion import Completion, LiveRollout, RolloutRequest, Sampling

NAN = float("nan")


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

    def totals(self, weights: Sequence[float]) -> list[float]:
        """Return the weighted sum of each completion's rewards; those that do not apply add nothing."""
        return [weighted_sum(row, weights) for row in self.rewards]


def weighted_sum(rewards: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted sum of rewards, without those that do not apply (NaN); NaN where none does."""
    applying = [weight * reward for weight, reward in zip(weights, rewards, strict=True) if reward == reward]
    return sum(applying) if applying else NAN


@attrs.frozen(kw_only=True, eq=False)
class Sampler:
    """Asks a backend for completions and scores them as they come."""

    live: LiveRollout
    backend: str
    """Its name, for errors."""
    rewards: RewardRunner
    weights: Sequence[float]
    """Of the rewards."""
    tokenizer: Any
    sampling: Sampling
    seed: int

    def sample(
        self, prompts: Prompts, samples: Sequence[int], count: int, lot: str, *, resamplings: int = 0
    ) -> tuple[list[Group], int]:
        """Return `count` completions for each of these prompts, in their order, and how many groups were sampled anew.

        Seeds are a function of the run's seed, `lot`, the prompt and the sample, so that a run that resumes draws the same. A
        group whose rewards are all equal teaches nothing and, with `resamplings`, is drawn again until they differ or the tries
        are used up. Raises PluginError for a backend that does not answer as it is asked.
        """
        groups = self._attempt(prompts, samples, count, f"{lot}.0")
        anew = 0
        for attempt in range(1, resamplings + 1):
            flat = [sample for sample in samples if self._is_flat(groups[sample])]
            if not flat:
                break
            anew += len(flat)
            groups.update(self._attempt(prompts, flat, count, f"{lot}.{attempt}"))
        return [groups[sample] for sample in samples], anew

    def _is_flat(self, group: Group) -> bool:
        totals = group.totals(self.weights)
        return len({total if total == total else None for total in totals}) <= 1

    def _attempt(self, prompts: Prompts, samples: Sequence[int], count: int, lot: str) -> dict[int, Group]:
        requests = {f"{lot}.{sample}": self._request(f"{lot}.{sample}", prompts, sample, count) for sample in samples}
        by_id = dict(zip(requests, samples, strict=True))
        pending: dict[int, tuple[list[Completion], Pending]] = {}
        for request, answers in self._answers(requests):
            sample = by_id[request.id]
            scored = [self._with_row(answer, prompts, sample, request) for answer in answers if answer.finish_reason != "error"]
            pending[sample] = scored, self.rewards.submit(scored)
        return {sample: self._group(sample, count, *pending[sample]) for sample in samples}

    def _request(self, id_: str, prompts: Prompts, sample: int, count: int) -> RolloutRequest:
        tree = prompts[sample]
        return RolloutRequest(
            id=id_,
            prompt=prompts.prompt(sample),
            prompt_ids=tree.prompt_ids,
            seeds=tuple(_seed(self.seed, id_, index) for index in range(count)),
            sampling=self.sampling,
            columns=tree.columns,
        )

    def _answers(self, requests: Mapping[str, RolloutRequest]) -> Iterable[tuple[RolloutRequest, list[Completion]]]:
        """Yield each request with its completions in the order of their seeds, as soon as all are there."""
        found: dict[str, dict[int, Completion]] = {id_: {} for id_ in requests}
        for completion in self.live.generate(list(requests.values())):
            request = self._checked(completion, requests, found)
            of_request = found[request.id]
            of_request[completion.index] = completion
            if len(of_request) == request.n:
                yield request, [of_request[index] for index in range(request.n)]
        for id_, request in requests.items():
            if len(found[id_]) < request.n:
                raise PluginError(
                    f"rollout {self.backend!r} gave {len(found[id_])} of {request.n} completions for a prompt; mend the backend, "
                    'or let it yield a Completion with finish_reason "error" for what it cannot complete'
                )

    def _checked(
        self, completion: Completion, requests: Mapping[str, RolloutRequest], found: Mapping[str, Mapping[int, Completion]]
    ) -> RolloutRequest:
        """Return what was asked. Raises PluginError for an answer to nothing, a second one, or one whose parts do not fit."""
        request = requests.get(completion.request_id)
        problem = None
        asked = f"{completion.request_id!r}[{completion.index}]"
        if request is None or not 0 <= completion.index < request.n:
            raise self._fault(f"answers {asked}, which was not asked")
        if completion.index in found[request.id]:
            problem = f"answers {asked} twice"
        elif completion.prompt_ids != request.prompt_ids:
            problem = "gives other prompt tokens than it was asked to complete"
        elif completion.finish_reason != "error":
            problem = _misfit(completion, self.sampling.max_completion_length)
        if problem is not None:
            raise self._fault(problem)
        return request

    def _fault(self, problem: str) -> PluginError:
        return PluginError(f"rollout {self.backend!r} {problem}; truing.testing.check_rollout finds such faults")

    def _with_row(self, completion: Completion, prompts: Prompts, sample: int, request: RolloutRequest) -> Completion:
        text = completion.text or str(self.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))
        return attrs.evolve(completion, prompt=prompts.prompt(sample), text=text, columns={**request.columns, **completion.columns})

    def _group(self, sample: int, count: int, completions: Sequence[Completion], pending: Pending) -> Group:
        scored = pending.result()
        kept = [index for index, failed in enumerate(scored.failed) if not failed]
        return Group(
            sample_id=sample,
            completions=tuple(completions[index] for index in kept),
            rewards=tuple(tuple(NAN if value is None else value for value in scored.values[index]) for index in kept),
            lost=count - len(kept),
        )


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


def _seed(seed: int, request: str, index: int) -> int:
    digest = hashlib.blake2b(f"{seed} {request} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
