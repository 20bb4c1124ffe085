"""What becomes of a micro-batch's forward: the loss of its trees, or gradients that are known already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from truing.data.batch import BatchPart, TreeBatch
from truing.data.tree import PromptTree
from truing.errors import PluginError, naming
from truing.loss import LossInputs, LossOutput, Needs
from truing.model.policy import PolicyOutput, loss_inputs
from truing.model.reference import Reference
from truing.reduce import StepCounts, add_shares, reduce_output
from truing.train.gather import differentiable, gather_inputs
from truing.train.guard import LOGPS, LOSS, REFERENCE, SCORES
from truing.train.micro_batches import MicroBatch
from truing.train.run import Run
from truing.train.state import random_state, restore_random_state


@attrs.define(eq=False, kw_only=True)
class LossObjective:
    """Calls the loss on some trees; sums up what that adds to the step's metrics."""

    run: Run
    counts: StepCounts
    reference: Reference | None
    shares: dict[str, Tensor] = attrs.field(factory=dict)
    finite: dict[str, Tensor] = attrs.field(factory=dict)
    """Whether all was, a bool scalar by the guard's words."""
    state: dict[str, Any] | None = None
    """The loss's new state, if it returned one."""
    _reference_logps: tuple[Tensor, Tensor] | None = None
    """[T] and [M]."""

    @property
    def needs(self) -> Needs:
        """What the policy's forward must give."""
        return self.run.needs

    @property
    def divisible(self) -> bool:
        """Unless the loss must see the whole step."""
        return not self.run.sees_whole_step

    def prepare(self, batch: TreeBatch) -> None:
        """Do what comes before the policy's forward."""
        known = "reference_token_logps" in batch.columns
        if self.reference is not None and Needs.REFERENCE_LOGPS in self.run.needs and not known:
            logps = self.reference.token_logps(batch)
            self._reference_logps = logps[: len(batch.targets)], logps[len(batch.targets) :]

    def inputs(self, part: BatchPart, output: PolicyOutput) -> LossInputs:
        """Return what the loss reads of a part."""
        logps = mismatched = None
        if self._reference_logps is not None:
            logps, mismatched = self._reference_logps[0][part.tokens], self._reference_logps[1][part.mismatched]
        return loss_inputs(
            part.batch,
            output,
            self.run.trained_layout,
            reference_token_logps=logps,
            mismatched_reference_token_logps=mismatched,
        )

    def __call__(self, part: BatchPart, output: PolicyOutput) -> Tensor:
        """Return the part's share of the step's loss."""
        inputs = self.inputs(part, output)
        result, loss, shares = _call(self.run, inputs, self.counts, len(part.batch.trees))
        add_shares(self.shares, shares)
        add_finite(self.finite, _finite(self.run, inputs, loss))
        self.state = _state_of(self.run, result)
        # a part may have nothing that the loss learns from, and ranks must all the same go through the backward together
        return loss if loss.requires_grad else loss + _zero(output)


@attrs.define(eq=False, kw_only=True)
class KnownGradients:
    """Carries gradients of the step's loss, by field of LossInputs, back into the forward that they are with respect to."""

    gradients: dict[str, Tensor]
    needs: Needs
    """What the policy's forward must give."""
    random: Any
    """The random generators' state at the forward that was differentiated, which this one repeats."""
    shares: dict[str, Tensor]
    finite: dict[str, Tensor] = attrs.field(factory=dict)
    state: dict[str, Any] | None = None
    divisible: bool = True

    def prepare(self, batch: TreeBatch) -> None:
        """Draw the same dropout again."""
        restore_random_state(*self.random)

    def __call__(self, part: BatchPart, output: PolicyOutput) -> Tensor:
        """Return the inner product, whose gradient is the one given."""
        cut = {"prompt_token_logps": part.prompt_tokens, "scores": part.branches}
        found = output.differentiable()
        products = [
            (gradient[cut.get(name, part.tokens)].to(found[name].dtype) * found[name]).sum()
            for name, gradient in self.gradients.items()
            if name in found  # NaN in place of log-probabilities, which a loss reads that said it would not, are of no forward
        ]
        return torch.stack(products).sum() if products else _zero(output)


Objective = LossObjective | KnownGradients


def make_objectives(run: Run, micro_batches: Sequence[MicroBatch], counts: StepCounts) -> Sequence[Objective]:
    """Return one objective for each micro-batch of a step; all ranks must call this together.

    A loss that must see the whole step is called here, once, on log-probabilities taken without gradient, unless the step is one
    micro-batch anyway.
    """
    single = run.accelerator.num_processes == 1 and len(micro_batches) == 1
    if single or not run.sees_whole_step:
        return [LossObjective(run=run, counts=counts, reference=run.reference) for _ in micro_batches]
    return _differentiate_whole_step(run, micro_batches, counts)


def loss_shares(
    run: Run, micro_batches: Sequence[MicroBatch], counts: StepCounts, reference: Reference | None
) -> Iterator[dict[str, Tensor]]:
    """Yield what a step's worth of trees adds to the metrics, micro-batch by micro-batch; no gradient is taken."""
    if not run.sees_whole_step:
        for micro_batch in micro_batches:
            objective = LossObjective(run=run, counts=counts, reference=reference)
            output, batch = _forward(run, objective, micro_batch)
            objective(batch.whole(), output)
            yield {name: share * micro_batch.weight for name, share in objective.shares.items()}
        return
    own = _own_inputs(run, micro_batches, counts, reference)
    inputs, _ = gather_inputs(run.accelerator, _that_count(micro_batches, own))
    yield _on_first_rank(run, _call(run, inputs, counts, _examples(inputs))[2])


@torch.no_grad()
def examine(run: Run, tree: PromptTree) -> tuple[dict[str, bool], float | None]:
    """Return what is finite of one tree by itself, by the guard's words, and its loss; None where that needs a whole step."""
    objective = LossObjective(run=run, counts=StepCounts.of([[tree]], run.trained_layout), reference=run.reference)
    output, batch = _forward(run, objective, MicroBatch([tree]))
    if run.sees_whole_step:
        inputs = objective.inputs(batch.whole(), output)
        return {word: bool(flag) for word, flag in _finite(run, inputs).items()}, None
    loss = float(objective(batch.whole(), output))
    return {word: bool(flag) for word, flag in objective.finite.items()}, loss


def _differentiate_whole_step(run: Run, micro_batches: Sequence[MicroBatch], counts: StepCounts) -> list[KnownGradients]:
    with torch.no_grad():
        own = _own_inputs(run, micro_batches, counts, run.reference)
    inputs, starts = gather_inputs(run.accelerator, _that_count(micro_batches, own))
    leaves = {name: tensor.requires_grad_() for name, tensor in differentiable(inputs).items()}
    output, loss, shares = _call(run, inputs, counts, _examples(inputs))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else [None] * len(leaves)
    gradients = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
    objectives, needs = [], run.needs & ~Needs.MISMATCHED_LOGPS  # which have no gradient
    for micro_batch, (one, random) in zip(micro_batches, own, strict=True):
        sizes = {name: len(tensor) for name, tensor in differentiable(one).items() if name in gradients}
        if micro_batch.counts:
            mine = {name: gradients[name][starts[name] : starts[name] + size] for name, size in sizes.items()}
            starts = {name: start + sizes.get(name, 0) for name, start in starts.items()}
        else:
            mine = {name: gradients[name].new_zeros(size) for name, size in sizes.items()}
        none = _on_first_rank(run, shares, nothing=True)
        objectives.append(KnownGradients(gradients=mine, needs=needs, random=random, shares=none))
    objectives[0].shares = _on_first_rank(run, shares)
    objectives[0].finite = _finite(run, inputs, loss)
    objectives[-1].state = _state_of(run, output)
    return objectives


def _own_inputs(
    run: Run, micro_batches: Sequence[MicroBatch], counts: StepCounts, reference: Reference | None
) -> list[tuple[LossInputs, Any]]:
    """Return what the loss reads of each of this rank's micro-batches, and the random generators' state before its forward."""
    found = []
    for micro_batch in micro_batches:
        objective = LossObjective(run=run, counts=counts, reference=reference)
        random = random_state()
        output, batch = _forward(run, objective, micro_batch)
        found.append((objective.inputs(batch.whole(), output), random))
        run.reporter.alive(run.state.step)
    return found


def _that_count(micro_batches: Sequence[MicroBatch], own: Sequence[tuple[LossInputs, Any]]) -> list[LossInputs]:
    return [inputs for micro_batch, (inputs, _) in zip(micro_batches, own, strict=True) if micro_batch.counts]


def _forward(run: Run, objective: LossObjective, micro_batch: MicroBatch) -> tuple[PolicyOutput, TreeBatch]:
    batch = run.lay_out(micro_batch.trees)
    with run.accelerator.autocast():
        objective.prepare(batch)
        output: PolicyOutput = run.wrapped(batch, run.needs)
    return output, batch


def _call(run: Run, inputs: LossInputs, counts: StepCounts, examples: int) -> tuple[LossOutput, Tensor, dict[str, Tensor]]:
    """Call the loss and reduce what it returns. Raises PluginError, naming it, for an error of its own."""
    failed = f"method {run.loss.name!r} ({type(run.loss).__module__}) failed in step {run.state.step + 1}"
    with (
        naming(failed, remedy="mend its plugin, or leave out what it cannot take"),
        torch.autocast(inputs.token_logps.device.type, enabled=False),
    ):
        output = run.loss(attrs.evolve(inputs, state=run.state.loss_state, **run.constants))
        return output, *reduce_output(output, counts, examples)


def add_finite(total: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Note in `total` what is finite so far."""
    for word, flag in found.items():
        total[word] = total[word] & flag if word in total else flag


def _finite(run: Run, inputs: LossInputs, loss: Tensor | None = None) -> dict[str, Tensor]:
    seen = (
        (LOSS, loss),
        (LOGPS, None if Needs.NO_LOGPS in run.needs else inputs.token_logps),
        (SCORES, inputs.scores),
        (LOGPS, inputs.mismatched_token_logps),
        (REFERENCE, inputs.reference_token_logps),
        (REFERENCE, inputs.mismatched_reference_token_logps),
    )
    found: dict[str, Tensor] = {}
    for word, tensor in seen:
        if tensor is not None:
            add_finite(found, {word: tensor.detach().isfinite().all()})
    return found


def _zero(output: PolicyOutput) -> Tensor:
    """Return 0, with a gradient of zeros."""
    return torch.stack([0 * tensor.sum() for tensor in output.differentiable().values()]).sum()


def _examples(inputs: LossInputs) -> int:
    return int(inputs.tree_ids.max()) + 1


def _on_first_rank(run: Run, shares: dict[str, Tensor], *, nothing: bool = False) -> dict[str, Tensor]:
    """Return shares as they are on the first rank and zeros on the others, which have computed the same: ranks are summed."""
    factor = float(run.accelerator.is_main_process and not nothing)
    return {name: share * factor for name, share in shares.items()}


def _state_of(run: Run, output: LossOutput) -> dict[str, Any] | None:
    if output.state is None:
        return None
    if not run.sees_whole_step:
        raise PluginError(
            f"method {run.loss.name!r} returned a state from a call that may be one of several in a step; "
            'give it scope = "step", so that it is called once a step'
        )
    return {key: value.detach() if isinstance(value, Tensor) else value for key, value in output.state.items()}
