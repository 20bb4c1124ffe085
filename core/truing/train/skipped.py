"""Steps that were left out, kept in the run directory with all that they were computed from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from truing.data.layouts import Forward
from truing.data.stored import stored_trees, tree_numbers, tree_tensors
from truing.data.tree import PromptTree
from truing.errors import ConfigError, first_line
from truing.model.attention import PLAIN_NAME
from truing.model.precomputed import Precomputed
from truing.model.reference import Following
from truing.model.spread import is_spread
from truing.train.checkpoint.files import write_file
from truing.train.checkpoint.tensors import safetensors_chunks
from truing.train.guard import OPTIMIZER
from truing.train.run import Run
from truing.train.state import RandomState

BATCH, TENSORS = "batch.json", "tensors.safetensors"
REFERENCE_PREFIX = "reference."
"""Of the names of a moving reference's weights, beside those of the policy."""
KEPT_WEIGHTS = 3
"""Of so many skips in a row the weights are kept, the newest."""


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
    weights_file: str
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
    state, folder = run.state, run.run_dir.skipped
    weights = folder / f"weights-{_unchanged_since(run):08d}.safetensors"
    moments = state.optimizer_tensors() if OPTIMIZER in problems else {}
    numbers = {
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
        "weights": weights.name,
        "base_dir": str(run.config.base_dir.resolve()),
    }
    tensors = {f"random.{name}": tensor for name, tensor in random[1].items()}
    tensors |= {f"trees.{name}": tensor for name, tensor in tree_tensors(trees).items()}
    tensors |= {f"loss_state.{name}": tensor for name, tensor in state.loss_tensors().items()}
    moving = {}
    if isinstance(run.reference, Following):
        moving = {f"{REFERENCE_PREFIX}{name}": weight for name, weight in run.reference.tensors().items()}
    if isinstance(run.reference, Precomputed):
        tensors["reference_logps"] = run.reference.of_trees(trees)
    path = folder_of(folder, state.step + 1)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in (BATCH, TENSORS):
            (path / name).unlink(missing_ok=True)
        write_file(path / TENSORS, safetensors_chunks(tensors))
        write_file(path / BATCH, [json.dumps(numbers, default=str).encode()])
        if not weights.exists() and not is_spread(run.policy):
            for old in sorted(folder.glob("weights-*.safetensors"))[: 1 - KEPT_WEIGHTS]:
                old.unlink()
            write_file(weights, safetensors_chunks({**state.weights(), **moving}))
    except OSError as error:
        run.reporter.warn(f"step {state.step + 1} cannot be kept for replay: {first_line(error)}")
        return False
    return True


def _unchanged_since(run: Run) -> int:
    """Return the step (counted from 1) since which the weights, a moving reference's too, are the same: the first skip in a row."""
    step = run.state.step + 1
    first = step + 1 - run.state.skipped_in_a_row
    if isinstance(run.reference, Following):  # it may have moved between two of them
        first = max(first, run.state.step // run.reference.sync_steps * run.reference.sync_steps + 1)
    return first


def read_skipped(skipped: Path, step: int) -> SkippedStep:
    """Return what `keep_skipped` wrote. Raises ConfigError where there is no such step or it cannot be read."""
    path = folder_of(skipped, step)
    if not (path / BATCH).exists():
        known = ", ".join(str(int(found.name[-8:])) for found in sorted(skipped.glob("step-*"))) or "none"
        raise ConfigError(f"step {step} is not among the steps that {skipped.parent} left out, which are {known}")
    try:
        numbers = json.loads((path / BATCH).read_bytes())
        tensors = load_file(path / TENSORS)
        return SkippedStep(
            step=step,
            trees=stored_trees(numbers["trees"], _below(tensors, "trees.")),
            loss_state={**numbers["loss_state"], **_below(tensors, "loss_state.")},
            random=(numbers["random"], _below(tensors, "random.")),
            reference_logps=tensors.get("reference_logps"),
            weights_file=numbers["weights"],
            base_dir=Path(numbers["base_dir"]),
            **{name: numbers[name] for name in ("problems", "forward", "flash", "own_logits", "tokens_per_batch", "damaged_state")},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)}); it is not as the run wrote it") from error


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
