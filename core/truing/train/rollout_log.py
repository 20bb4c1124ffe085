"""What is told of sampled completions: metrics, completions.jsonl, and a table in the terminal now and then."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from truing.data.dataset import TreeDataset
from truing.rollout.completion import Completion
from truing.rollout.plan import RolloutPlan
from truing.rollout.sampler import Group, Lot, all_alike, weighted_sum
from truing.train.run import Run

TABLES = 10
"""How many tables of samples there are in a run, where nothing else is said."""
TABLE_ROWS = 3
SHOWN_CHARACTERS = 160


@attrs.define(eq=False)
class RolloutLog:
    """Measures, writes and shows groups of completions."""

    run: Run
    prompts: TreeDataset
    plan: RolloutPlan
    names: Sequence[str]
    """Of the rewards."""
    weights: Sequence[float]
    worths: Callable[[Group], Sequence[float]]
    """What the method takes each completion to be worth."""

    def metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Return the mean reward, its spread within groups, each reward's mean and spread, and lengths.

        Lost completions count in none of them, nor prompts with fewer than two others in what compares a prompt's completions. What
        nothing counts in is left out. A spread is the unbiased standard deviation.
        """
        totals = [[total for total in group.totals(self.weights) if not math.isnan(total)] for group in groups]
        flat = [alike for alike in (all_alike(self.worths(group)) for group in groups) if alike is not None]
        rewards = [reward for of_group in totals for reward in of_group]
        completions = [completion for group in groups for completion in group.completions]
        lengths = [len(completion.token_ids) for completion in completions]
        ended = [len(completion.token_ids) for completion in completions if completion.finish_reason != "length"]
        found = {
            "reward": _mean(rewards),
            "reward_std": _mean([_spread(of_group) for of_group in totals if len(of_group) > 1]),
            "frac_reward_zero_std": _mean([float(one) for one in flat]),
            **dict(self._by_reward(groups)),
            "completions/mean_length": _mean(lengths),
            "completions/min_length": float(min(lengths, default=math.nan)),
            "completions/max_length": float(max(lengths, default=math.nan)),
            "completions/mean_terminated_length": _mean(ended),
            "completions/clipped_ratio": 1 - len(ended) / len(lengths) if lengths else math.nan,
            "completions/mean_turns": _mean([one.episode.turns for one in completions if one.episode is not None]),
            "completions/lost": float(sum(group.lost for group in groups)),
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _by_reward(self, groups: Sequence[Group]) -> Iterator[tuple[str, float]]:
        for index, name in enumerate(self.names):
            given = [row[index] for group in groups for row in group.rewards if not math.isnan(row[index])]
            yield f"rewards/{name}/mean", _mean(given)
            yield f"rewards/{name}/std", _spread(given)

    def staleness(self, lot: Lot) -> dict[str, float]:
        """Return how many versions the tokens' weights were behind the policy's, and how many completions were dropped for it."""
        rollout = self.run.config.rollout
        if rollout is None or not (rollout.max_staleness or lot.stale):
            return {}
        spans = [span for group in lot.groups for span in group.spans]
        behind = [(self.run.state.step - span.version) / self.plan.updates for span in spans]
        sizes = [span.end - span.start for span in spans]
        tokens = max(1, sum(sizes))
        return {
            "staleness/mean": sum(age * size for age, size in zip(behind, sizes, strict=True)) / tokens,
            "staleness/max": max(behind, default=0.0),
            "completions/dropped_stale": float(lot.stale),
        }

    def _versions(self, completion: Completion) -> dict[str, Any]:
        """Return the version of the first token's weights and, where it changed on the way, all spans of tokens with theirs."""
        spans = [(span.version, span.start, span.end) for span in completion.versions]
        first = spans[0][0] if spans else self.run.state.step
        return {"version": first} if len(spans) < 2 else {"version": first, "versions": spans}

    def write(self, groups: Sequence[Group], advantages: Sequence[float | None]) -> None:
        """Append every completion to completions.jsonl, on the first rank, and show some where it is time to."""
        run = self.run
        if not run.accelerator.is_main_process:
            return
        lines = list(self._lines(groups, advantages))
        error = run.run_dir.append_completions(lines)
        if error is not None:
            run.reporter.warn(f"completions.jsonl cannot be written ({error}); tried again with the next batch")
        if lines and self._shows():
            run.reporter.table(
                f"samples of step {run.state.step + 1}",
                ("prompt", "completion", "reward", "advantage"),
                [_row(line) for line in lines[: TABLE_ROWS * self.plan.num_generations : self.plan.num_generations]],
            )

    def _shows(self) -> bool:
        rollout, updates = self.run.config.rollout, self.plan.updates
        tables = int(getattr(self.run.loss, "num_sample_generations", TABLES))
        every = (rollout.table_steps if rollout else None) or (math.ceil(self.run.total_steps / tables) if tables else 0)
        lot, step = self.run.state.step // updates, self.run.state.step
        # the first lot at or after every so many steps
        return bool(every) and (lot == 0 or step // every > (step - updates) // every)

    def _lines(self, groups: Sequence[Group], advantages: Sequence[float | None]) -> Iterator[dict[str, Any]]:
        remaining = iter(advantages)
        for group in groups:
            for completion, rewards in zip(group.completions, group.rewards, strict=True):
                yield {
                    "step": self.run.state.step + 1,
                    **self._versions(completion),
                    "sample": group.sample_id,
                    "prompt": self.prompts.prompt(group.sample_id),
                    "completion": completion.text,
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                    **_episode(completion),
                    "rewards": {name: _number(value) for name, value in zip(self.names, rewards, strict=True)},
                    "reward": _number(weighted_sum(rewards, self.weights)),
                    "advantage": _number(next(remaining)),
                }


def _episode(completion: Completion) -> dict[str, Any]:
    """Return what a line tells of an episode beside its text, which is what the policy wrote: all messages among others."""
    if completion.episode is None:
        return {}
    return {
        "turns": completion.episode.turns,
        "messages": completion.episode.messages,
        "written_tokens": sum(completion.loss_mask or ()),
        "rows": 1 + len(completion.forks),
    }


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    prompt = line["prompt"] if isinstance(line["prompt"], str) else line["prompt"][-1]["content"]
    numbers = ("-" if line[key] is None else f"{line[key]:.3g}" for key in ("reward", "advantage"))
    return (_shortened(str(prompt)), _shortened(line["completion"]), *numbers)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS // 2]} ... {text[-SHOWN_CHARACTERS // 2 :]}"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
