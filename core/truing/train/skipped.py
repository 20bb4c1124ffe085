"""Steps that were left out, kept in the run directory with all that they were computed from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from safetensors.torch import load_file
from torch import Tensor

from truing.config import dump_config
from truing.data.layouts import Forward
from truing.data.stored import stored_trees, tree_numbers, tree_tensors
from truing.data.tree import PromptTree
from truing.errors import ConfigError, first_line
from truing.model.attention import PLAIN_NAME
from truing.model.precomputed import Precomputed
from truing.model.reference import Following
from truing.model.spread import is_spread
from truing.train.checkpoint.files import Seal, replace_file
from truing.train.checkpoint.manifest import DamagedError, check_file, read_sealed, sealed
from truing.train.checkpoint.tensors import safetensors_chunks
from truing.train.guard import OPTIMIZER
from truing.train.run import Run
from truing.train.run_dir import CONFIG
from truing.train.state import UNREADABLE, RandomState

BATCH, TENSORS = "batch.json", "tensors.safetensors"
REFERENCE_PREFIX = "reference."
"""Of the names of a moving reference's weights, beside those of the policy."""
KEPT_WEIGHTS = 3
"""Of so many skips in a row the weights are kept, the newest."""
_WEIGHTS_NAME = re.compile(r"weights-\d{8,}\.safetensors")
NO_WEIGHTS = "its weights are not kept, of which only the newest are: computed with those that the run began with"


@attrs.frozen(eq=False, kw_only=True)
class SkippedStep:
    """A step that was left out."""

    step: int
    """Counted from 1, as in the log."""
    problems: Sequence[str]
    """Why, by the guard's words."""
    trees: Sequence[PromptTree]
    """Of all ranks."""
    forward: Forward
    flash: bool
    """Whether its attention took the flash kernels."""
    own_logits: bool
    tokens_per_batch: int
    loss_state: Mapping[str, Any]
    random: RandomState
    """Of the first rank, before the step."""
    reference_logps: Tensor | None
    """[T + M] where the reference was precomputed."""
    damaged_state: Sequence[str]
    """Names within the optimiser's state that were not finite."""
    weights: Path | None
    """The file of those before it; None where they are not kept any more, or never were, for they are spread over ranks."""
    config: Path
    """The file of the run's settings then."""
    base_dir: Path
    """The folder that relative names in the configuration refer to."""


def folder_of(skipped: Path, step: int) -> Path:
    """Return where a step (counted from 1) is kept."""
    return skipped / f"step-{step:08d}"


def keep_skipped(run: Run, problems: Sequence[str], trees: Sequence[PromptTree], random: RandomState) -> bool:
    """Write a step to the run directory, on the first rank; a disk that does not take it costs the record and not the run.

    Return whether it is kept, so far as this rank knows.
    """
    if not run.accelerator.is_main_process:
        return True
    path = folder_of(run.run_dir.skipped, run.state.step + 1)
    numbers = _numbers(run, problems, trees, random)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / BATCH).unlink(missing_ok=True)  # it is written last, and there is no step without it
        tensors = replace_file(path / TENSORS, safetensors_chunks(_tensors(run, trees, random)))
        config = replace_file(path / CONFIG, [dump_config(run.config).encode()])  # which a later resume may change
        weights = _keep_weights(run)
        files = {name: attrs.asdict(seal) for name, seal in {TENSORS: tensors, CONFIG: config, **weights}.items()}
        numbers |= {"weights": next(iter(weights), None), "files": files}
        replace_file(path / BATCH, [sealed(json.loads(json.dumps(numbers, default=str)))])
    except OSError as error:
        run.reporter.warn(f"step {run.state.step + 1} cannot be kept for replay: {first_line(error)}")
        return False
    return True


def _numbers(run: Run, problems: Sequence[str], trees: Sequence[PromptTree], random: RandomState) -> dict[str, Any]:
    state = run.state
    moments = state.optimizer_tensors() if OPTIMIZER in problems else {}
    return {
        "problems": list(problems),
        "samples": [tree.sample_id for tree in trees],
        "trees": tree_numbers(trees),
        "forward": run.policy.layout,
        "flash": run.policy.causal_lm.config._attn_implementation != PLAIN_NAME,
        "own_logits": run.policy.own_logits,
        "tokens_per_batch": state.tokens_per_batch,
        "loss_state": {key: value for key, value in state.loss_state.items() if not isinstance(value, Tensor)},
        "random": random[0],
        "damaged_state": [name for name, tensor in moments.items() if not bool(tensor.isfinite().all())],
        "base_dir": str(run.config.base_dir.resolve()),
    }


def _tensors(run: Run, trees: Sequence[PromptTree], random: RandomState) -> dict[str, Tensor]:
    tensors = {f"random.{name}": tensor for name, tensor in random[1].items()}
    tensors |= {f"trees.{name}": tensor for name, tensor in tree_tensors(trees).items()}
    tensors |= {f"loss_state.{name}": tensor for name, tensor in run.state.loss_tensors().items()}
    if isinstance(run.reference, Precomputed):
        tensors["reference_logps"] = run.reference.of_trees(trees)
    return tensors


def _keep_weights(run: Run) -> dict[str, Seal]:
    """Write what the step was computed with, unless the one before it was too; return name and seal, nothing of spread weights."""
    if is_spread(run.policy):
        return {}
    path = run.run_dir.skipped / f"weights-{_unchanged_since(run):08d}.safetensors"
    # a file of an earlier process may be of another course, which the run had before it was resumed
    if path.name not in run.run_dir.kept_weights:
        _make_room(path)
        run.run_dir.kept_weights = {path.name: replace_file(path, safetensors_chunks(weights_of(run)))}
    return run.run_dir.kept_weights


def weights_of(run: Run) -> dict[str, Tensor]:
    """Return what moves from step to step: the policy's weights, and a moving reference's, by the names that they are kept by."""
    moving = run.reference.tensors() if isinstance(run.reference, Following) else {}
    return {**run.state.weights(), **{f"{REFERENCE_PREFIX}{name}": weight for name, weight in moving.items()}}


def _make_room(path: Path) -> None:
    """Delete the weights that were written first, whatever their step, and drafts that a killed process left."""
    for draft in path.parent.glob(".writing-weights-*"):
        draft.unlink()
    others = [other for other in path.parent.glob("weights-*.safetensors") if other != path]
    for old in sorted(others, key=lambda other: (other.lstat().st_mtime_ns, other.name))[: 1 - KEPT_WEIGHTS]:
        old.unlink()


def _unchanged_since(run: Run) -> int:
    """Return the step (counted from 1) since which the weights, a moving reference's too, are the same: the first skip in a row."""
    step = run.state.step + 1
    first = step + 1 - run.state.skipped_in_a_row
    if isinstance(run.reference, Following):  # it may have moved between two of them
        first = max(first, run.state.step // run.reference.sync_steps * run.reference.sync_steps + 1)
    return first


def read_skipped(skipped: Path, step: int) -> SkippedStep:
    """Return what `keep_skipped` wrote. Raises ConfigError where there is no such step, or it is not what was written."""
    path = folder_of(skipped, step)
    if not os.path.lexists(path / BATCH):
        known = ", ".join(str(int(found.parent.name[-8:])) for found in sorted(skipped.glob(f"step-*/{BATCH}"))) or "none"
        raise ConfigError(f"step {step} is not among the steps that {skipped.parent} left out, which are {known}")
    try:
        numbers = read_sealed(path / BATCH)
        for name in (TENSORS, CONFIG):
            check_file(path / name, Seal(**numbers["files"][name]))
        tensors = load_file(path / TENSORS)
        return SkippedStep(
            step=step,
            trees=stored_trees(numbers["trees"], _below(tensors, "trees.")),
            loss_state={**numbers["loss_state"], **_below(tensors, "loss_state.")},
            random=(numbers["random"], _below(tensors, "random.")),
            reference_logps=tensors.get("reference_logps"),
            weights=_weights(skipped, numbers),
            config=path / CONFIG,
            base_dir=Path(numbers["base_dir"]),
            **{name: numbers[name] for name in ("problems", "forward", "flash", "own_logits", "tokens_per_batch", "damaged_state")},
        )
    except UNREADABLE as error:
        raise unreadable(skipped, step, error) from error


def _weights(skipped: Path, numbers: Mapping[str, Any]) -> Path | None:
    """Return the file of a step's weights, which is as it was written; None where they are not kept any more."""
    name: str | None = numbers["weights"]
    if name is None:
        return None
    if not _WEIGHTS_NAME.fullmatch(name):
        raise DamagedError(f"{BATCH} names {name!r} as the weights, which are weights-<step>.safetensors in {skipped}")
    if not os.path.lexists(skipped / name):
        return None
    check_file(skipped / name, Seal(**numbers["files"][name]))
    return skipped / name


def unreadable(skipped: Path, step: int, error: Exception) -> ConfigError:
    """Return what to tell the user of a step that is kept and cannot be read."""
    what = str(error) if isinstance(error, DamagedError) else first_line(error)
    return ConfigError(
        f"{folder_of(skipped, step)} cannot be read: {what}; it is not as the run wrote it. Take it from a copy, or replay another "
        "step"
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
