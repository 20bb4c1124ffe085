"""Computes a step that a run left out once more, from what the run directory keeps of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import get_total_norm

from truing.config import TrainConfig, load_config
from truing.data import DataReport
from truing.data.batch import TreeBatch
from truing.data.dataset import TreeDataset
from truing.data.tree import PromptTree
from truing.errors import ConfigError, lacks_memory
from truing.model.attention import use_own_attention, use_tree_attention
from truing.model.precomputed import join_trees, split_by_tree
from truing.model.reference import Following, FrozenCopy
from truing.registry import Registry
from truing.train.console import Reporter
from truing.train.given import Given
from truing.train.guard import GRADIENT, OPTIMIZER
from truing.train.objective import examine
from truing.train.quiet import quiet_libraries
from truing.train.references import is_other_model
from truing.train.run import Run
from truing.train.run_dir import RunDir
from truing.train.setup import Data, set_up
from truing.train.skipped import NO_WEIGHTS, SkippedStep, read_skipped, unreadable, weights_of
from truing.train.state import UNREADABLE, check_tensors, restore_random_state
from truing.train.step import accumulate_gradients


@attrs.frozen(kw_only=True)
class Sample:
    """One sample of a step, computed by itself."""

    sample_id: int
    loss: float | None
    """None where the loss must see a whole step."""
    problems: Sequence[str]
    """What of it is not finite, by the guard's words."""


@attrs.frozen(kw_only=True)
class Replay:
    """What a step came to when it was computed again."""

    skipped: SkippedStep
    loss: float
    grad_norm: float
    problems: Sequence[str]
    """What is not finite now, by the guard's words."""
    samples: Sequence[Sample]


def replay(path: Path, step: int, *, given: Given | None = None, reporter: Reporter | None = None) -> Replay:
    """Compute a step (counted from 1) that the run at `path` left out, with the weights and the random numbers that it had.

    Nothing is written to the run directory. `given` are the objects that the run was given instead of names. Raises ConfigError
    where nothing is kept of that step, or it is not what was written.
    """
    skipped = read_skipped(RunDir(path).skipped, step)
    config = load_config(skipped.config, registry=Registry.load(), base_dir=skipped.base_dir)
    given = given or Given()
    if config.model.name.startswith("(") and given.model is None:
        raise ConfigError(f"{path}: the run was handed its model; truing.train.replay.replay(..., given=Given(model=...)) takes it")
    with (
        tempfile.TemporaryDirectory(prefix="truing-replay-") as folder,
        quiet_libraries(),
        closing(RunDir(Path(folder) / "run")) as run_dir,
    ):
        run = set_up(_settings(config, run_dir), given, run_dir, resume=False, reporter=reporter, data=_data(config, skipped))
        try:
            run = _as_it_was(run, skipped)
        except UNREADABLE as error:
            if lacks_memory(error):  # which says nothing of the record
                raise
            raise unreadable(RunDir(path).skipped, step, error) from error
        return _compute(run, skipped)


def _settings(config: TrainConfig, run_dir: RunDir) -> TrainConfig:
    return attrs.evolve(
        config,
        output=attrs.evolve(config.output, dir=run_dir.path),
        model=attrs.evolve(config.model, precompute_reference=False),
        trainer=attrs.evolve(config.trainer, report_to=(), forward="padded"),
    )


def _data(config: TrainConfig, skipped: SkippedStep) -> Data:
    trees = TreeDataset(config.method.layout)
    for tree in skipped.trees:
        trees.append(tree)
    count = len(trees)
    report = DataReport(rows_read=count, rows_kept=count, samples_read=count, samples_kept=count)
    return Data(trees=trees, report=report, eval_trees=None, eval_report=None)


def _as_it_was(run: Run, skipped: SkippedStep) -> Run:
    """Return the run in the state that it had before the step."""
    run.policy.layout, run.policy.own_logits = skipped.forward, skipped.own_logits
    if skipped.forward == "shared_prefix":
        use_tree_attention(run.policy.causal_lm, flash=skipped.flash)
    else:
        use_own_attention(run.policy.causal_lm)
    live = run.reference.reference if isinstance(run.reference, Following) else run.reference
    if isinstance(live, FrozenCopy) and not is_other_model(run.config):
        live.policy.adopt_forward(run.policy)
    if run.policy.critic is not None:
        run.policy.critic.adopt_forward(run.policy)
    run.state.step, run.state.tokens_per_batch = skipped.step - 1, skipped.tokens_per_batch
    run.state.loss_state = dict(skipped.loss_state)
    if skipped.weights is not None:
        _load_weights(run, skipped.weights)
    else:
        run.reporter.warn(f"step {skipped.step}: {NO_WEIGHTS}")
    if skipped.reference_logps is not None:
        run = attrs.evolve(run, reference=_Recorded(skipped.trees, skipped.reference_logps))
    restore_random_state(*skipped.random)
    return run


def _load_weights(run: Run, path: Path) -> None:
    found = load_file(path)
    weights = weights_of(run)
    check_tensors(path.name, found, weights)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name])


class _Recorded:
    """The log-probabilities of the reference that were kept with a step."""

    def __init__(self, trees: Sequence[PromptTree], logps: Tensor) -> None:
        parts = split_by_tree(logps, trees)
        self._by_sample = {tree.sample_id: part for tree, part in zip(trees, parts, strict=True)}

    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M]."""
        return join_trees([self._by_sample[tree.sample_id] for tree in batch.trees], batch.trees).to(batch.targets.device)


def _compute(run: Run, skipped: SkippedStep) -> Replay:
    run.wrapped.train()
    result = accumulate_gradients(run, skipped.trees)
    gradients = [weight.grad for weight in run.policy.parameters() if weight.grad is not None]
    norm = float(get_total_norm(gradients))
    problems = [word for word, flag in result.finite.items() if not bool(flag)]
    problems += [GRADIENT] if not math.isfinite(norm) else []
    problems += [OPTIMIZER] if skipped.damaged_state else []
    samples = []
    for tree in skipped.trees:
        finite, loss = examine(run, tree)
        samples.append(Sample(sample_id=tree.sample_id, loss=loss, problems=[word for word, fine in finite.items() if not fine]))
    return Replay(skipped=skipped, loss=float(result.metrics["loss"]), grad_norm=norm, problems=problems, samples=samples)
