"""One optimiser step, and one evaluation: trees in, metrics out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from accelerate.utils import gather_object
from torch import Tensor

from truing.data.batch import TreeBatch
from truing.data.tree import PromptTree, Trees, in_chunks
from truing.errors import PluginError
from truing.model.spread import whole
from truing.reduce import StepCounts, add_shares
from truing.train.guard import GRADIENT, OPTIMIZER, SPIKE, judge, take_state
from truing.train.micro_batches import MicroBatch, cut
from truing.train.objective import add_finite, loss_shares, make_objectives
from truing.train.rollouts import RolloutSource
from truing.train.run import Run
from truing.train.skipped import keep_skipped
from truing.train.state import RandomState, random_state


@attrs.define(eq=False)
class StepResult:
    """What a step was: this rank's share of the metrics, on the device, and how much it computed."""

    learning_rate: float
    """The rate that the step used."""
    metrics: dict[str, Tensor] = attrs.field(factory=dict)
    finite: dict[str, Tensor] = attrs.field(factory=dict)
    """Whether all was on this rank, a bool scalar by the guard's words."""
    tokens: int = 0
    """Prompt and completion tokens, each once."""
    inputs: int = 0
    """Positions computed, padding left out."""
    slots: int = 0
    """Positions computed."""
    unshared: int = 0
    """What inputs would be with a prompt computed for each of its branches."""
    loss_state: dict[str, Any] | None = None
    """The loss's new state, if it returned one."""
    ends_for: str | None = None
    """Why the run must end: too many steps in a row were left out."""

    def add(self, batch: TreeBatch) -> None:
        """Count what a micro-batch computed."""
        self.tokens += sum(tree.num_tokens for tree in batch.trees)
        self.inputs += batch.num_inputs
        self.unshared += batch.num_unshared
        self.slots += batch.slots


def train_step(run: Run, trees: Sequence[PromptTree] | None = None) -> StepResult:
    """Run the step that `run.state.step` says on its trees, the source's for None: forward and backward, clip, update.

    A step in which something is not finite changes no weight; it is counted and kept for replay, and the result says when they are
    too many in a row.
    """
    trees = run.source.trees(run) if trees is None else trees
    if not trees:
        return _step_on_nothing(run)
    random = random_state()
    result = accumulate_gradients(run, trees)
    add_shares(result.metrics, _measured(run))
    norm = _clip(run)
    problems = judge(run, result.finite, norm)
    result.metrics["grad_norm"] = (
        norm / run.accelerator.num_processes
    )  # ranks have the same norm, and metrics are summed over ranks
    _update(run, problems)
    if not problems:
        run.state.skipped_in_a_row = 0
        if result.loss_state is not None:
            take_state(run, result.loss_state)
    else:
        result.ends_for = _skip(run, problems, trees, random)
    return result


def _step_on_nothing(run: Run) -> StepResult:
    """Leave the weights as they are: of what was sampled for this step the method keeps nothing."""
    assert run.state.scheduler is not None
    result = StepResult(learning_rate=float(run.state.scheduler.get_last_lr()[0]), metrics=_measured(run))
    run.state.scheduler.step()
    return result


def _measured(run: Run) -> dict[str, Tensor]:
    """Return this rank's share of what the source measured, which every rank has."""
    values = run.source.metrics
    if not values:
        return {}
    shares = torch.tensor([value / run.accelerator.num_processes for value in values.values()])
    # at once, and without waiting for the device, which has the backward to do
    return dict(zip(values, shares.to(run.accelerator.device, non_blocking=True).unbind(), strict=True))


def accumulate_gradients(run: Run, trees: Sequence[PromptTree]) -> StepResult:
    """Leave the whole step's gradient in the policy's parameters; it does not depend on how the step is cut or shared out.

    `trees` are those of all ranks.
    """
    accelerator, state = run.accelerator, run.state
    counts = StepCounts.of([trees], run.trained_layout)
    micro_batches = cut(run, trees)
    assert state.scheduler is not None
    result = StepResult(learning_rate=float(state.scheduler.get_last_lr()[0]))
    objectives = make_objectives(run, micro_batches, counts)
    for index, (micro_batch, objective) in enumerate(zip(micro_batches, objectives, strict=True)):
        last = index == len(micro_batches) - 1
        batch = run.lay_out(micro_batch.trees)
        # gradients of ranks meet once, in the last backward, so ranks may differ in their number of micro-batches
        with nullcontext() if last else accelerator.no_sync(run.wrapped):
            with accelerator.autocast():
                objective.prepare(batch)
                loss = run.wrapped(batch, objective.needs, objective=objective)
            # accelerate averages gradients over ranks, and the counts are those of all ranks
            accelerator.backward(loss * micro_batch.weight * accelerator.num_processes)
            del loss  # and what its graph holds, before the next forward
        add_shares(result.metrics, {name: share * micro_batch.weight for name, share in objective.shares.items()})
        add_finite(result.finite, objective.finite)
        if micro_batch.counts:
            result.add(batch)
        result.loss_state = objective.state
        run.reporter.alive(state.step)
    return result


def _clip(run: Run) -> Tensor:
    """Scale the gradient down to the allowed norm and return the norm that it had."""
    norm: Tensor = run.accelerator.clip_grad_norm_(run.wrapped.parameters(), run.trainer.max_grad_norm or float("inf"))
    return whole(norm)


def _update(run: Run, problems: Sequence[str]) -> None:
    state = run.state
    assert state.optimizer is not None and state.scheduler is not None
    if not problems or _is_overflow(run, problems):
        state.optimizer.step()
    elif (scaler := run.accelerator.scaler) is not None:
        scaler.update(scaler.get_scale())  # the same scale; else it takes the next gradient for one that it has unscaled already
    state.optimizer.zero_grad()
    state.scheduler.step()


def _is_overflow(run: Run, problems: Sequence[str]) -> bool:
    """Whether the gradient overflowed in fp16: the scaler sees it too, skips the update, and needs the call to lower its scale."""
    return run.accelerator.scaler is not None and list(problems) == [GRADIENT]


def _skip(run: Run, problems: Sequence[str], trees: Sequence[PromptTree], random: RandomState) -> str | None:
    """Count a step that was left out, and keep it for replay; return why the run must end, when they are too many in a row."""
    state = run.state
    state.skipped_in_a_row += 1
    state.skipped_steps += 1
    samples = [tree.sample_id for tree in trees]
    why = "the norm of its gradient is a spike" if SPIKE in problems else f"not finite: {', '.join(problems)}"
    named = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
    run.reporter.warn(f"step {state.step + 1} left out: {why} (samples {named})")
    kept = not _is_overflow(run, problems) and keep_skipped(run, problems, trees, random)
    if state.skipped_in_a_row < run.trainer.max_skipped_steps:
        return None
    advice = (
        "The optimiser's state is damaged: go on from a checkpoint with --resume"
        if OPTIMIZER in problems
        else "Lower trainer.learning_rate, use bf16 instead of fp16, or look at the samples named above"
    )
    again = f"; truing replay {run.run_dir.path} {state.step + 1} computes one again" if kept else ""
    return (
        f"{state.skipped_in_a_row} steps in a row were left out, the last one: {why}. The weights are those of step "
        f"{state.step + 1 - state.skipped_in_a_row}. {advice}{again}"
    )


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Return the loss and metrics over the whole evaluation data, each name with the prefix eval_."""
    assert run.eval_trees is not None
    total: dict[str, Tensor] = {}
    if isinstance(run.source, RolloutSource):
        return {f"eval_{name}": value for name, value in run.source.evaluate(run, run.eval_trees).items()}
    counts = StepCounts.of(in_chunks(run.eval_trees), run.trained_layout)
    run.wrapped.eval()
    for micro_batches in _evaluation(run, run.eval_trees):
        for shares in loss_shares(run, micro_batches, counts, run.eval_reference):
            add_shares(total, shares)
            run.reporter.alive(run.state.step)
    run.wrapped.train()
    return {f"eval_{name}": value for name, value in gather_metrics(run, total).items()}


def gather_metrics(run: Run, shares: dict[str, Tensor]) -> dict[str, float]:
    """Sum every metric's shares over ranks, in one exchange, and take the numbers off the device."""
    names = sorted(shares)
    if run.accelerator.num_processes > 1:
        others = gather_object([names])
        if any(other != names for other in others):
            raise PluginError(
                f"method {run.loss.name!r} returns other metrics on other ranks: {others}; return the same names always"
            )
    column = torch.stack([shares[name].double() for name in names])
    return dict(zip(names, run.accelerator.reduce(column, reduction="sum").tolist(), strict=True))


def _evaluation(run: Run, trees: Trees) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of some of the evaluation data at a time.

    A loss that must see a whole step gets as many trees as a step of training has.
    """
    for some in in_chunks(trees, run.order.per_lot if run.sees_whole_step else None):
        yield cut(run, some)
