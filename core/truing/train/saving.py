"""Between a run and its checkpoints: saving the state of every rank beside the training, and going on from one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch import Tensor

from truing.errors import ConfigError, TruingError, first_line, lacks_memory
from truing.model.reference import Following
from truing.model.spread import is_spread
from truing.train.changes import describe_changes, flat_settings
from truing.train.checkpoint import CheckpointError, Contents, DamagedError, Manifest, verify
from truing.train.checkpoint.background import Save, Snapshot
from truing.train.guard import require_finite_state, weights_are_finite
from truing.train.identity import EVAL_DATA
from truing.train.ranks import together
from truing.train.run import Run
from truing.train.run_dir import METRICS, library_versions
from truing.train.state import UNREADABLE, check_tensors, random_state, restore_random_state

MOST_FAILURES = 2
"""Saves that may fail in a row before the run ends."""
STATE = "state.json"


@attrs.define(eq=False)
class Saver:
    """Writes the checkpoints of a run, one at a time; all ranks call its methods together."""

    run: Run
    begun_at: int = attrs.field(init=False)
    """The step that the run began at, or went on from."""
    _finite: bool = attrs.field(init=False)
    """Whether the weights that it began with are, as all later ones must be then."""
    _snapshot: Snapshot = attrs.field(factory=Snapshot, init=False)
    _save: Save | None = attrs.field(default=None, init=False)
    _begun: int | None = attrs.field(default=None, init=False)
    """The step of the last save."""
    _open: bool = attrs.field(default=False, init=False)
    """Whether how the last save ended is still to be looked at."""
    _problem_of_shards: str | None = attrs.field(default=None, init=False)
    _failures: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.begun_at = self.run.state.step
        self._finite = weights_are_finite(self.run)

    def save(self, *, wait: bool = False) -> Path:
        """Save the state as it is and return where; with `wait` it is written when this returns.

        Raises CheckpointError when it could not be, having waited, or for the second time in a row; TruingError, having written
        nothing, when the state is not finite.
        """
        self.settle()
        run, path = self.run, self.run.run_dir.store.path(self.run.state.step)
        if self._begun != run.state.step:
            require_finite_state(run, weights=self._finite)
            self._begin()
        self.settle(wait=wait, last=wait)
        return path

    def leave(self) -> None:
        """Wait for what this process still writes, before an error ends the run: other processes may not be there to ask."""
        problem = self._problem() if self._open and self._save is not None else None
        if problem is not None:
            self.run.reporter.warn(problem)

    def settle(self, *, wait: bool = True, last: bool = False) -> None:
        """Look how the last save ended, where it has ended or with `wait`. A failed one is told of; the second in a row raises."""
        alone = self.run.accelerator.num_processes == 1
        if not self._open or not (wait or (alone and self._save is not None and not self._save.running)):
            return
        self._open = False
        problem = next((found for found in gather_object([self._problem()]) if found is not None), None)
        if problem is None:
            self._failures = 0
            return
        self._failures += 1
        self._begun = None
        if last or self._failures >= MOST_FAILURES:
            raise CheckpointError(problem)
        self.run.reporter.warn(f"{problem}. Training goes on, and the next save tries again")

    def _begin(self) -> None:
        run = self.run
        self._begun, self._open = run.state.step, True
        if is_spread(run.policy):
            self._problem_of_shards = _save_shards(run)
            return
        ranks = gather_object([random_state()])
        if not run.accelerator.is_main_process:
            return
        tables = {**_tables(run), **{f"random-{rank}": tensors for rank, (_, tensors) in enumerate(ranks)}}
        contents = Contents(tensors=tables, documents=_documents(run, [numbers for numbers, _ in ranks]))
        in_background = run.trainer.save_in_background and self._snapshot.fits(tables)
        if in_background:
            contents = attrs.evolve(contents, tensors=self._snapshot.of(tables))
        about = _about(run, sharded=False)
        keep = run.trainer.save_total_limit
        self._start(lambda given_up: run.run_dir.store.save(contents, keep=keep, given_up=given_up, **about))
        if not in_background:
            self._finish()

    def _start(self, work: Callable[[Callable[[], bool]], Path]) -> None:
        self._save = Save(work, f"checkpoint {self.run.run_dir.store.path(self.run.state.step)}")

    def _finish(self) -> None:
        """Wait for the save: what it reads is the live state, which must not change meanwhile."""
        assert self._save is not None
        self._save.wait(self.run.trainer.save_timeout)

    def _problem(self) -> str | None:
        """Return how this rank's last save failed."""
        if self._save is None:
            return self._problem_of_shards
        try:
            self._save.result(self.run.trainer.save_timeout)
        except Exception as error:  # other ranks wait to hear of it, whatever it is
            return str(error) if isinstance(error, (TruingError, TimeoutError)) else first_line(error)
        return None


def _save_shards(run: Run) -> str | None:
    """Write every rank's part of weights and optimiser into one checkpoint, while training waits; return what went wrong."""
    store, step, main = run.run_dir.store, run.state.step, run.accelerator.is_main_process
    numbers, random = random_state()
    ranks = gather_object([numbers])
    contents = Contents(tensors=_tables_of_rank(run, random, main=main), documents=_documents(run, ranks) if main else {})
    try:
        draft = together(lambda: store.begin(step) if main else None, "beginning a checkpoint")[0]
        assert draft is not None, "the first process began it"
        seals = together(lambda: store.add(draft, contents), "writing a checkpoint")
        manifest = Manifest(files={name: seal for part in seals for name, seal in part.items()}, **_about(run, sharded=True))
        together(lambda: store.seal(draft, manifest, run.trainer.save_total_limit) if main else None, "sealing a checkpoint")
    except CheckpointError as error:
        return str(error)
    return None


def _tables_of_rank(run: Run, random: dict[str, Tensor], *, main: bool) -> dict[str, dict[str, Tensor]]:
    rank = run.accelerator.process_index
    tables = _tables(run)
    own = {f"{name}-{rank}": tables.pop(name) for name in _SHARDED}
    return {**own, f"random-{rank}": random, **(tables if main else {})}


_SHARDED = ("weights", "optimizer")
"""Files that each rank has its own of, with its number behind the name, where weights are spread over ranks."""


def _tables(run: Run) -> dict[str, dict[str, Tensor]]:
    state = run.state
    return {
        "weights": state.weights(),
        "optimizer": state.optimizer_tensors(),
        "loss_state": state.loss_tensors(),
        "source": run.source.tensors(),
        **({"reference": run.reference.tensors()} if isinstance(run.reference, Following) else {}),
    }


def _documents(run: Run, random: list[Any]) -> dict[str, bytes]:
    numbers = {**run.state.numbers(), "source": run.source.numbers(), "random": random}
    numbers["completions_bytes"] = run.run_dir.completions_bytes()
    return {STATE: json.dumps(numbers).encode(), METRICS: run.run_dir.metrics()}


def _about(run: Run, *, sharded: bool) -> dict[str, Any]:
    return {
        "step": run.state.step,
        "world_size": run.accelerator.num_processes,
        "sharded": sharded,
        "identity": dict(run.identity),
        "config": flat_settings(run.config),
        "libraries": library_versions(),
    }


def restore(run: Run, path: Path | None) -> None:
    """Take over the newest whole checkpoint, or the one at `path`; later ones are put aside, for the run takes its own course.

    A run without a checkpoint starts from its first step. Raises CheckpointError, having changed nothing on the disk, when there
    are some and none can be used; ConfigError when the one at `path` is damaged, or when the checkpoint belongs to another run or
    to a longer one.
    """
    store = run.run_dir.store
    # one rank looks, for another may see a folder that is renamed meanwhile
    candidates = [path] if path is not None else gather_object([list(reversed(store.checkpoints()))])[0]
    for candidate in candidates:
        problem = next((found for found in gather_object([_take_over(run, candidate)]) if found is not None), None)
        if problem is None:
            if run.accelerator.is_main_process:
                run.run_dir.rewrite_metrics((candidate / METRICS).read_bytes())
                run.run_dir.cut_completions(_numbers(candidate)["completions_bytes"])
            run.reporter.say(f"resumed from {candidate}: {run.state.step} of {run.total_steps} steps done")
            break
        if path is not None:
            raise ConfigError(f"{candidate} cannot be resumed: {problem}; name another, or none for the newest whole one")
        run.reporter.warn(f"{candidate} is damaged: {problem}")
    else:
        if candidates:
            raise CheckpointError(
                f"none of the checkpoints in {store.folder} can be used ({len(candidates)} tried), and nothing was changed; mend "
                "what keeps them from being read, or, to start from the first step, move them elsewhere"
            )
        run.reporter.say(f"no checkpoint in {store.folder}: starting from the first step")
        if run.accelerator.is_main_process:
            run.run_dir.rewrite_metrics(b"")
            run.run_dir.cut_completions(0)
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        store.put_aside_after(run.state.step)
    run.accelerator.wait_for_everyone()


def _take_over(run: Run, path: Path) -> str | None:
    """Take over a checkpoint, or return what is wrong with it."""
    try:
        manifest = verify(path)
        _require_same_run(run, path, manifest)
        _load(run, path, manifest)
    except DamagedError as error:
        return str(error)
    return None


def _require_same_run(run: Run, path: Path, manifest: Manifest) -> None:
    """Raise ConfigError, naming what differs, unless a checkpoint belongs to this run; say what else has changed."""
    saved = manifest.identity
    if "reference.safetensors" in manifest.files and not isinstance(run.reference, Following):
        raise ConfigError(
            f"{path} has a reference that has followed the policy, and here none does; resume with model.reference.sync_steps, "
            "a large one to leave the reference as it is now"
        )
    fixed, others = describe_changes(manifest.config, flat_settings(run.config))
    differing = [
        f"{key} ({saved.get(key)}, now {run.identity.get(key)})"
        for key in sorted({*saved, *run.identity})
        if saved.get(key) != run.identity.get(key) and key != EVAL_DATA
    ]
    if saved.get(EVAL_DATA) != run.identity.get(EVAL_DATA):
        others.append(EVAL_DATA)
    if differing or fixed:
        keys = f" Keys that differ: {', '.join(fixed + others)}." if fixed or others else ""
        raise ConfigError(
            f"{path} belongs to a run with other {', '.join(differing or fixed)}; resume with what that run had, or start anew in "
            f"another output.dir.{keys}"
        )
    ranks, spread = run.accelerator.num_processes, is_spread(run.policy)
    if manifest.sharded and manifest.world_size != ranks:
        raise ConfigError(f"{path} has the weights of {manifest.world_size} processes, and there are {ranks}; start as many")
    if manifest.sharded is not spread:
        before, now = ("is", "are not") if manifest.sharded else ("is not", "are")
        raise ConfigError(
            f"{path} {before} of weights that were spread over processes (FSDP), and here they {now}; start as that run was started"
        )
    if manifest.step > run.total_steps:
        raise ConfigError(
            f"{path} is of step {manifest.step}, and this run has {run.total_steps} steps; raise trainer.num_epochs "
            "or trainer.max_steps, or resume from an earlier one (--resume CHECKPOINT)"
        )
    if others:
        run.reporter.warn(f"changed since {path.name}, which is allowed, and gives the run another course: {', '.join(others)}")


def _load(run: Run, path: Path, manifest: Manifest) -> None:
    state, here = run.state, dict(run.state.references)
    rank = run.accelerator.process_index
    weights, optimizer = (f"{name}-{rank}" if manifest.sharded else name for name in _SHARDED)
    # more ranks than before cannot all go on where one was
    random = rank % manifest.world_size
    try:
        numbers = _numbers(path)
        if numbers["step"] != manifest.step:
            raise DamagedError(f"{STATE} is of step {numbers['step']!r}, and the manifest of step {manifest.step}")
        tables = {name: load_file(path / f"{name}.safetensors") for name in (weights, optimizer, "loss_state", "source")}
        reference = _reference(run, path, manifest)
        run.source.load(numbers["source"], {name: tensor.clone() for name, tensor in tables["source"].items()})
        if not isinstance(numbers["completions_bytes"], int):
            raise DamagedError(f"{STATE} has {numbers['completions_bytes']!r} for the length of completions.jsonl")
        state.load(numbers, tables[weights], tables[optimizer], tables["loss_state"])
        if isinstance(run.reference, Following) and reference is not None:
            run.reference.load(reference)
        restore_random_state(numbers["random"][random], load_file(path / f"random-{random}.safetensors"))
    except UNREADABLE as error:
        if lacks_memory(error):  # which says nothing of the checkpoint
            raise
        raise (
            error if isinstance(error, DamagedError) else DamagedError(f"its state cannot be read ({first_line(error)})")
        ) from error
    _warn_of_other_references(run, here)
    state.references = here
    state.tokens_per_batch = run.trainer.max_tokens_per_batch or state.tokens_per_batch


def _numbers(path: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((path / STATE).read_bytes())
    return numbers


def _reference(run: Run, path: Path, manifest: Manifest) -> dict[str, Tensor] | None:
    """Return the weights of a reference that follows; None where it had not begun to, and is what the policy started from."""
    if not isinstance(run.reference, Following) or "reference.safetensors" not in manifest.files:
        return None
    found = load_file(path / "reference.safetensors")
    check_tensors("reference", found, run.reference.tensors())
    return found


def _warn_of_other_references(run: Run, here: dict[str, str]) -> None:
    for file, seal in run.state.references.items():
        if here.get(file, seal) != seal:
            run.reporter.warn(
                f"reference: the log-probabilities in {file} are not those that the run began with; it goes on, "
                "not bitwise the same"
            )
