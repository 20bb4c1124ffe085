"""Where an online method's trees come from: completions of the run's prompts, sampled, scored and kept for the steps on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import attrs
import torch
from accelerate.utils import gather_object
from torch import Tensor

from truing.context import OpenContext
from truing.data.dataset import TreeDataset
from truing.data.stored import stored_trees, tree_numbers, tree_tensors
from truing.data.tree import PromptTree, Trees
from truing.errors import ConfigError, RolloutError
from truing.loss import Needs
from truing.model.weight_source import PolicyWeights
from truing.rewards.runner import RewardRunner
from truing.rollout.completion import is_concurrent
from truing.rollout.grown import tree_of
from truing.rollout.opening import open_rollout
from truing.rollout.plan import RolloutPlan
from truing.rollout.sampler import Asked, Group, Lot, Sampler
from truing.train.advantages import Learned, learn_from, measure
from truing.train.order import DataOrder
from truing.train.ranks import together
from truing.train.rollout_log import RolloutLog
from truing.train.run import Run
from truing.train.worth import worths


@attrs.define(eq=False, kw_only=True)
class RolloutSource:
    """Samples a lot of prompts whenever the completions at hand are used up.

    What it holds between steps is the trees of the current lot, which a checkpoint keeps only while steps are left on them. The
    order of prompts and every seed are functions of the run's seed and the step.
    """

    prompts: TreeDataset
    order: DataOrder
    plan: RolloutPlan
    _trees: list[PromptTree] = attrs.field(factory=list, init=False)
    _metrics: dict[str, float] = attrs.field(factory=dict, init=False)
    _left: int = attrs.field(default=0, init=False)
    """Steps still to be taken on the trees at hand."""
    _ahead: dict[int, Asked] = attrs.field(factory=dict, init=False)
    """What is asked for already, by the step that begins with it."""
    _version: int | None = attrs.field(default=None, init=False)
    """Of the weights that the backend has."""
    _read: Needs = attrs.field(default=Needs.NOTHING, init=False)
    """What the loss reads."""
    _sampler: Sampler | None = attrs.field(default=None, init=False)
    _log: RolloutLog | None = attrs.field(default=None, init=False)
    _opened: ExitStack = attrs.field(factory=ExitStack, init=False)

    def open(self, run: Run) -> None:
        """Open the backend and the rewards; `close` closes them. Raises on all ranks where it fails on one."""
        together(lambda: self._open(run), "opening rollouts and rewards")

    def _open(self, run: Run) -> None:
        config = run.config
        assert config.rollout is not None
        self._read = run.needs
        staleness, backend = config.rollout.max_staleness, config.rollout.backend.name
        context = OpenContext(
            tokenizer=run.state.tokenizer,
            device=run.accelerator.device,
            run_dir=run.run_dir.path,
            seed=run.trainer.seed,
            models={"policy": run.state.model},
            rank=run.accelerator.process_index,
            num_ranks=run.accelerator.num_processes,
            max_staleness=staleness,
            config_dir=config.base_dir,
        )
        live = open_rollout(config.rollout, context)
        self._opened.callback(live.close)
        if staleness and not is_concurrent(live):
            raise ConfigError(
                f"rollout.max_staleness is {staleness}, and {backend} cannot sample while the policy trains; set it to 0, or "
                "sample with a server, such as vllm"
            )
        if about := getattr(live, "about", ""):
            run.reporter.say(f"rollout: {about}")
        rewards = self._opened.enter_context(
            RewardRunner(config.rewards, context, workers=config.trainer.reward_workers, memory_mb=config.trainer.reward_memory_mb)
        )
        weights = [entry.weight for entry in config.rewards]
        of_method = partial(worths, run, weights)
        self._log = RolloutLog(run, self.prompts, self.plan, rewards.names, weights, of_method)
        self._sampler = Sampler(
            live=live,
            backend=backend,
            rewards=rewards,
            worths=of_method,
            tokenizer=run.state.tokenizer,
            sampling=self.plan.sampling,
            seed=run.trainer.seed,
            versions_needed=staleness > 0,
        )
        self._opened.callback(self._give_up)

    def _give_up(self) -> None:
        for asked in self._ahead.values():
            asked.cancel()
        self._ahead.clear()

    def close(self) -> None:
        """Close what was opened."""
        self._opened.close()

    def trees(self, run: Run) -> Sequence[PromptTree]:
        """Return the trees of the run's next step, of all ranks together; sample first, when none are left."""
        update = run.state.step % self.plan.updates
        if update == 0 or not self._left:
            self._fill(run)
        else:  # what it took was for the first of the steps
            self._metrics = {name: value for name, value in self._metrics.items() if not name.startswith("seconds/")}
        self._left = self.plan.updates - update - 1
        iteration, part = divmod(update, self.plan.minibatches)
        order = self._shuffled(run.state.step - update, iteration)
        start, stop = (len(order) * edge // self.plan.minibatches for edge in (part, part + 1))  # as even as can be
        return [self._trees[index] for index in order[start:stop]]

    def _shuffled(self, lot: int, iteration: int) -> list[int]:
        """Return the order in which a pass over the trees takes them."""
        if self.plan.minibatches == 1:
            return list(range(len(self._trees)))
        seed = (self.order.seed * 1_000_003 + lot) * 1_000_003 + iteration
        generator = torch.Generator().manual_seed(seed % 2**63)
        order: list[int] = torch.randperm(len(self._trees), generator=generator).tolist()
        return order

    @property
    def metrics(self) -> Mapping[str, float]:
        """What is measured of the completions at hand."""
        return self._metrics

    def _fill(self, run: Run) -> None:
        assert self._sampler is not None and self._log is not None
        started = time.perf_counter()
        lot = self._of_all_ranks(run, self.order.samples(run.state.step), partial(self._next_lot, run))
        groups, sampled = lot.groups, time.perf_counter()
        errors = self._end_batch(run, lot)
        trees = [tree_of(self.prompts[group.sample_id], group) for group in groups if group.completions]
        learned = self._learned(run, trees) if trees else self._nothing(run, groups)
        self._trees = learned.trees
        self._metrics = {
            **self._log.metrics(groups),
            **self._log.staleness(lot),
            **learned.metrics,
            **errors,
            **({"dynamic_sampling/resampled": float(lot.resampled)} if self._resamplings(run) else {}),
            "seconds/sampling": sampled - started,
            "seconds/advantages": time.perf_counter() - sampled,
        }
        self._log.write(groups, learned.by_completion)

    def _learned(self, run: Run, trees: Sequence[PromptTree]) -> Learned:
        return learn_from(run, measure(run, trees, updates=self.plan.updates), updates=self.plan.updates)

    def _nothing(self, run: Run, groups: Sequence[Group]) -> Learned:
        """Say that every completion is lost, which is within the error rates that are allowed: the steps on them change nothing."""
        lost, log = sum(group.lost for group in groups), run.run_dir.path / "rewards.log"
        run.reporter.warn(
            f"step {run.state.step + 1}: none of {lost} completions has a score, so that nothing is learned from them: calls of "
            f"rewards failed ({log} says how), or the rollout backend did; lower max_error_rate to end the run where that happens"
        )
        return Learned(trees=[], by_completion=[], metrics={})

    def _resamplings(self, run: Run) -> int:
        return int(getattr(run.loss, "dynamic_sampling", 0))

    def _next_lot(self, run: Run) -> Lot:
        """Return this rank's share of the step's lot, having asked for those of the lots after it that may be sampled by now."""
        sampler = self._sampler
        assert run.config.rollout is not None and sampler is not None
        step, ahead = run.state.step, run.config.rollout.max_staleness * self.plan.updates
        for start in range(step, min(step + ahead + 1, run.total_steps), self.plan.updates):
            if start not in self._ahead:
                share = _share(run, self.order.samples(start))
                self._ahead[start] = sampler.ask(self.prompts, share, self.plan.num_generations, f"lot.{start}")
        return sampler.sample(self._ahead.pop(step), resamplings=self._resamplings(run), oldest=step - ahead)

    def _end_batch(self, run: Run, lot: Lot) -> dict[str, float]:
        """Return the error rate of the backend and of each reward, over all completions drawn for the batch, every try included.

        Raises RolloutError where the backend's is above what is allowed, and TruingError where a reward's is, on all ranks.
        """
        sampler, rollout = self._sampler, run.config.rollout
        assert sampler is not None and rollout is not None
        failures, drawn = lot.failures, lot.drawn
        if len(failures) > rollout.max_error_rate * drawn:
            raise RolloutError(
                f"rollout {sampler.backend!r} failed on {len(failures)} of {drawn} completions, more than rollout.max_error_rate "
                f"{rollout.max_error_rate:g} allows; the first failure: {failures[0]}"
            )
        rates = sampler.rewards.end_batch(
            lambda counts: [sum(of_ranks) for of_ranks in zip(*gather_object([list(counts)]), strict=True)]
        )
        return {"completions/error_rate": len(failures) / max(1, drawn), **rates}

    def _of_all_ranks(self, run: Run, samples: Sequence[int], sample: Callable[[], Lot]) -> Lot:
        """Return the groups of these prompts, of which each rank samples its share, from the policy's weights as they are now."""
        self._push(run)

        with run.accelerator.autocast():
            shares = together(sample, "sampling")
        by_sample = {group.sample_id: group for lot in shares for group in lot.groups}
        return Lot(
            groups=[by_sample[sample] for sample in samples],
            resampled=sum(lot.resampled for lot in shares),
            stale=sum(lot.stale for lot in shares),
            drawn=sum(lot.drawn for lot in shares),
            failures=[failure for lot in shares for failure in lot.failures],
        )

    def _push(self, run: Run) -> None:
        """Let the backend have the policy's weights, unless it has them."""
        sampler, version = self._sampler, run.state.step
        assert sampler is not None
        if self._version != version:
            together(lambda: sampler.live.update_weights(version, PolicyWeights(run)), "the transfer of weights")
            self._version = version

    def evaluate(self, run: Run, prompts: Trees) -> dict[str, float]:
        """Return the rewards on held-out prompts, which get the same seeds every time, without a prefix."""
        assert self._sampler is not None and self._log is not None and run.config.rollout is not None
        assert isinstance(prompts, TreeDataset)
        count, found = self.plan.num_eval_generations, Lot()
        for start in range(0, len(prompts), self.plan.prompts):
            some = range(start, min(start + self.plan.prompts, len(prompts)))
            lot = self._of_all_ranks(run, some, partial(self._held_out, run, prompts, _share(run, some)))
            found.groups += lot.groups
            found.drawn += lot.drawn
            found.failures += lot.failures
            run.reporter.alive(run.state.step)
        errors = self._end_batch(run, found)
        weights, passing = self._log.weights, run.config.rollout.pass_reward
        return {**self._log.metrics(found.groups), **pass_rates(found.groups, weights, count, passing), **errors}

    def _held_out(self, run: Run, prompts: TreeDataset, samples: Sequence[int]) -> Lot:
        assert self._sampler is not None
        asked = self._sampler.ask(prompts, samples, self.plan.num_eval_generations, "eval")
        return self._sampler.sample(asked, oldest=run.state.step)

    def numbers(self) -> dict[str, Any]:
        """Return the part of what it holds that is JSON."""
        held = self._trees if self._left else []
        return {"left": self._left, "trees": tree_numbers(held), "metrics": self._metrics}

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of what it holds that is tensors."""
        return tree_tensors(self._trees if self._left else [])

    def load(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Hold what `numbers` and `tensors` gave. Raises ConfigError where steps are left on trees without what the loss reads."""
        self._left, self._metrics = int(numbers["left"]), dict(numbers["metrics"])
        self._trees = stored_trees(numbers["trees"], tensors)
        sampled = [branch.sampled for tree in self._trees for branch in tree.branches if branch.sampled is not None]
        for need, name in _MEASURED_ONCE.items():
            if need in self._read and any(name not in one.columns for one in sampled):
                raise ConfigError(
                    f"the checkpoint has {self._left} steps left on completions that were kept without their {name}, which the "
                    "method reads with the settings that it has now; resume with those that it had before, and change them after "
                    "these steps, or resume from a checkpoint after which a rollout batch begins (--resume CHECKPOINT)"
                )


_MEASURED_ONCE = {Needs.BEHAVIOR_LOGPS: "behavior_token_logps", Needs.PROXIMAL_LOGPS: "proximal_token_logps"}
"""What is kept with completions for the steps on them because it cannot be known afterwards."""


def _share(run: Run, samples: Sequence[int]) -> Sequence[int]:
    """Return which of the prompts this rank samples."""
    return samples[run.accelerator.process_index :: run.accelerator.num_processes]


def pass_rates(groups: Sequence[Group], weights: Sequence[float], count: int, passing: float) -> dict[str, float]:
    """Return pass@1 and pass@k for k the completions of a prompt: the share of prompts of which one of k drawn completions passes.

    A completion passes whose weighted rewards sum to `passing` or more. pass@1 is the mean share of passing ones; with as many
    drawn as there are, pass@k is whether any does. One without a score does not pass.
    """
    passed = [sum(total >= passing for total in group.totals(weights)) for group in groups]
    rates = {"pass@1": sum(passed) / (count * len(groups))}
    return rates | ({f"pass@{count}": sum(number > 0 for number in passed) / len(groups)} if count > 1 else {})
