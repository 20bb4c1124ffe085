"""From sampled completions to trees that a loss learns from: first the models' numbers, then the method's advantages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
from accelerate.utils import gather_object
from torch import Tensor

from truing.data.batch import TreeBatch, joined_columns
from truing.data.dataset import branch_roles
from truing.data.tree import PromptTree
from truing.declared import all_needs
from truing.errors import PluginError, naming
from truing.loss import Advantages, Layout, LossInputs, Needs
from truing.model.policy import PolicyOutput
from truing.reduce import StepCounts, reduce_term
from truing.train.guard import take_state
from truing.train.micro_batches import cut
from truing.train.run import Run

_OF_POLICY = Needs.VALUES | Needs.ENTROPY | Needs.SQUARED_PROBS
"""What `advantages` may read of the policy's forward beside log-probabilities."""


@attrs.frozen(kw_only=True, eq=False)
class Learned:
    """What a method made of a rollout batch."""

    trees: list[PromptTree]
    """With what its loss reads; without the completions that it leaves out."""
    by_completion: list[float | None]
    """[B] the advantage of each completion, its mean where tokens have their own; None for one that is left out."""
    metrics: dict[str, float]


def measure(run: Run, trees: Sequence[PromptTree], *, updates: int) -> list[PromptTree]:
    """Return the trees of all ranks with what models say of them before the update, as far as anything reads it.

    These are the policy's log-probabilities and values, and the reference's log-probabilities. `updates` is the number of steps on
    these trees: the first one computes the policy's log-probabilities itself, so that a single step needs none here.
    """
    wanted, own = _needs_now(run, trees, updates)
    if not (wanted or own):
        return list(trees)
    found: dict[int, list[dict[str, Tensor]]] = {}
    run.wrapped.eval()  # dropout would tell of another policy than the one that sampled
    for micro_batch in cut(run, trees):
        batch = run.lay_out(micro_batch.trees)
        columns = _columns(run, batch, wanted, own)
        run.reporter.alive(run.state.step)
        if micro_batch.counts:
            found.update(_by_branch(batch, columns))
    run.wrapped.train()
    everywhere = {key: value for share in gather_object([found]) for key, value in share.items()}
    return [_with_columns(tree, everywhere[tree.sample_id]) for tree in trees]


def _needs_now(run: Run, trees: Sequence[PromptTree], updates: int) -> tuple[Needs, bool]:
    """Return what models must be asked before the update, and whether that is of the policy's log-probabilities too."""
    loss: Any = run.loss
    rollout_needs: Needs = loss.rollout_needs
    wanted = rollout_needs & _OF_POLICY
    reference = Needs.REFERENCE_LOGPS in rollout_needs or (updates > 1 and Needs.REFERENCE_LOGPS in loss.needs)
    if reference:
        wanted |= Needs.REFERENCE_LOGPS
    unknown = any(
        "behavior_token_logps" not in branch.sampled.columns for tree in trees for branch in tree.branches if branch.sampled
    )
    own = (
        Needs.NO_LOGPS not in rollout_needs
        or (updates > 1 and Needs.PROXIMAL_LOGPS in loss.needs)
        or (unknown and Needs.BEHAVIOR_LOGPS in all_needs(loss))
    )
    return wanted, own


@torch.no_grad()
def _columns(run: Run, batch: TreeBatch, wanted: Needs, own: bool) -> dict[str, Tensor]:
    """Return [T] each, on the CPU."""
    columns: dict[str, Tensor] = {}
    with run.accelerator.autocast():
        if own or wanted & _OF_POLICY:
            output: PolicyOutput = run.wrapped(batch, (wanted & _OF_POLICY) | (Needs.NOTHING if own else Needs.NO_LOGPS))
            columns |= output.differentiable()
        if Needs.REFERENCE_LOGPS in wanted:
            assert run.reference is not None
            columns["reference_token_logps"] = run.reference.token_logps(batch)
    return {name: column.float().cpu() for name, column in columns.items()}


def _by_branch(batch: TreeBatch, columns: Mapping[str, Tensor]) -> dict[int, list[dict[str, Tensor]]]:
    """Return by sample what each of its branches' tokens have."""
    lengths = batch.lengths.tolist()
    split = {name: iter(torch.split(column, lengths)) for name, column in columns.items()}
    return {tree.sample_id: [{name: next(parts) for name, parts in split.items()} for _ in tree.branches] for tree in batch.trees}


def _with_columns(tree: PromptTree, columns: Sequence[Mapping[str, Tensor]]) -> PromptTree:
    branches = []
    for branch, own in zip(tree.branches, columns, strict=True):
        assert branch.sampled is not None
        known = {**own, **branch.sampled.columns}
        if "token_logps" in known:
            known.setdefault("behavior_token_logps", known["token_logps"])
        branches.append(attrs.evolve(branch, sampled=attrs.evolve(branch.sampled, columns=known)))
    return attrs.evolve(tree, branches=tuple(branches))


def learn_from(run: Run, trees: Sequence[PromptTree], *, updates: int) -> Learned:
    """Ask the method for advantages, and return the trees that its loss is called with; its state, if it returned one, is kept.

    Raises PluginError for an error of the method's own, and for pairs that it gives or not against its `trained_layout`.
    """
    loss: Any = run.loss
    whole = [without_forks(tree) for tree in trees]
    inputs = rollout_inputs(run, whole)
    with naming_the_method(run):
        advantages: Advantages = loss.advantages(inputs)
    _check_advantages(loss, inputs, advantages)
    if advantages.state is not None:
        take_state(run, _moved(advantages.state, run.accelerator.device))
    counts = StepCounts.of([whole], Layout.ROLLOUT)
    metrics = {name: float(reduce_term(term, counts)) for name, term in advantages.metrics.items() if counts.has(term.per)}
    paired = run.trained_layout is Layout.PAIRED
    if paired is not (advantages.pairs is not None):
        raise PluginError(
            f"method {loss.name!r} has trained_layout {run.trained_layout.name}, and its `advantages` gives "
            f"{'pairs' if advantages.pairs is not None else 'no pairs'}; pairs are for PAIRED, and only for it"
        )
    alone = paired or bool(advantages.columns) or advantages.values.shape != inputs.lengths.shape
    forks = sum(len(tree.branches) - len(one.branches) for tree, one in zip(trees, whole, strict=True))
    if forks:
        metrics["completions/forks"], metrics["completions/forks_left_out"] = float(forks), float(forks if alone else 0)
    trained = whole if forks and alone else trees  # a fork has no tokens that an advantage of each token could be for
    learned = _pairs(whole, advantages) if paired else _with_advantages(run, trained, inputs, advantages, updates)
    return Learned(trees=learned, by_completion=_by_completion(inputs, advantages), metrics=metrics)


def naming_the_method(run: Run) -> AbstractContextManager[None]:
    """Turn an error of the method's own, on rewards, into a PluginError that names it."""
    method = f"method {run.loss.name!r} ({type(run.loss).__module__})"
    return naming(f"{method} failed on the rewards before step {run.state.step + 1}", remedy="mend its plugin")


def _check_advantages(loss: Any, inputs: LossInputs, advantages: Advantages) -> None:
    """Raise PluginError for tensors of another shape than the batch's, and for pairs beside `keep`."""
    tokens, branches = len(inputs.token_logps), len(inputs.lengths)
    shapes = {"values": (advantages.values, ([tokens], [branches])), "keep": (advantages.keep, ([branches],))}
    shapes |= {f"column {name!r}": (column, ([tokens],)) for name, column in advantages.columns.items()}
    for name, (tensor, allowed) in shapes.items():
        if tensor is not None and list(tensor.shape) not in allowed:
            raise PluginError(
                f"method {loss.name!r}: its `advantages` gives {name} of shape {list(tensor.shape)}, and it must be "
                f"{' or '.join(map(str, allowed))} here ([T] tokens, [B] completions); truing.testing.check_loss finds such faults"
            )
    if advantages.pairs is not None and advantages.keep is not None:
        raise PluginError(f"method {loss.name!r}: its `advantages` gives both pairs and keep; pair only what is to be kept")


def without_forks(tree: PromptTree) -> PromptTree:
    """Return the tree with one branch for each completion, whose reward and advantage those before it share."""
    branches = tuple(branch for branch in tree.branches if not (branch.sampled is not None and branch.sampled.fork))
    return tree if len(branches) == len(tree.branches) else attrs.evolve(tree, branches=branches)


def rollout_inputs(run: Run, trees: Sequence[PromptTree]) -> LossInputs:
    """Return a rollout batch as `advantages` reads it, on the CPU, where it is the same on every rank."""
    branches = [branch for tree in trees for branch in tree.branches]
    sampled = [branch.sampled for branch in branches if branch.sampled is not None]
    lengths = torch.tensor([branch.counted for branch in branches])
    fields = {field.name for field in attrs.fields(LossInputs)}
    columns: dict[str, Any] = {name: column for name, column in joined_columns(sampled).items() if name in fields}
    columns.setdefault("token_logps", torch.full((int(lengths.sum()),), torch.nan))
    return LossInputs(
        layout=Layout.ROLLOUT,
        sequence_ids=torch.arange(len(branches)).repeat_interleave(lengths),
        tree_ids=torch.tensor([index for index, tree in enumerate(trees) for _ in tree.branches]),
        lengths=lengths,
        rewards=torch.tensor([one.rewards for one in sampled], dtype=torch.float32),
        truncated=torch.tensor([one.truncated for one in sampled]),
        state=_moved(run.state.loss_state, lengths.device),
        **_moved(run.constants, lengths.device),
        **columns,
    )


def _moved(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def _with_advantages(
    run: Run, trees: Sequence[PromptTree], inputs: LossInputs, advantages: Advantages, updates: int
) -> list[PromptTree]:
    """Return the trees with what the loss reads, without the branches that the method leaves out."""
    lengths = inputs.lengths.tolist()
    per_token = advantages.values.shape != inputs.lengths.shape
    given = dict(advantages.columns) | ({"advantages": advantages.values} if per_token else {})
    split = {name: torch.split(column.float(), lengths) for name, column in given.items()}
    kept = _kept(inputs, advantages)
    numbers = advantages.values.tolist()
    found, index = [], 0
    for tree in trees:
        branches = []
        for branch in tree.branches:  # those that are forks stand before the completion that they are of
            assert branch.sampled is not None
            if kept[index]:
                columns = _read_by_loss(run, branch.sampled.columns, updates)
                columns |= {name: part[index] for name, part in split.items()}
                advantage = None if per_token else float(numbers[index])
                branches.append(attrs.evolve(branch, sampled=attrs.evolve(branch.sampled, columns=columns, advantage=advantage)))
            index += not branch.sampled.fork
        if branches:
            found.append(attrs.evolve(tree, branches=tuple(branches)))
    return found


def _read_by_loss(run: Run, columns: Mapping[str, Tensor], updates: int) -> dict[str, Tensor]:
    """Return those of the measured columns that the loss reads in the steps to come."""
    read = {}
    if Needs.PROXIMAL_LOGPS in run.needs and updates > 1:
        read["proximal_token_logps"] = columns["token_logps"]
    for need, name in ((Needs.BEHAVIOR_LOGPS, "behavior_token_logps"), (Needs.REFERENCE_LOGPS, "reference_token_logps")):
        if need in run.needs and name in columns:
            read[name] = columns[name]
    return read


def _pairs(trees: Sequence[PromptTree], advantages: Advantages) -> list[PromptTree]:
    """Return a tree for each pair of completions, chosen before rejected."""
    assert advantages.pairs is not None
    places = [(tree, branch) for tree in trees for branch in tree.branches]
    roles = branch_roles(Layout.PAIRED, 2)
    return [
        attrs.evolve(
            places[pair[0]][0],
            branches=tuple(attrs.evolve(places[at][1], role=role, sampled=None) for at, role in zip(pair, roles, strict=True)),
        )
        for pair in advantages.pairs.tolist()
    ]


def _by_completion(inputs: LossInputs, advantages: Advantages) -> list[float | None]:
    values = advantages.values
    if values.shape != inputs.lengths.shape:
        values = inputs.mean(values)
    return [float(value) if keep else None for value, keep in zip(values.tolist(), _kept(inputs, advantages), strict=True)]


def _kept(inputs: LossInputs, advantages: Advantages) -> list[bool]:
    kept: list[bool] = attrs.evolve(inputs, keep=advantages.keep).kept.tolist()
    return kept
