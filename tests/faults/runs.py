"""Tiny runs: what an unbroken one ends with, and whether one that was broken and resumed ends with the same."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from tests.end_to_end.helpers import save_tiny_model, write_config
from tests.end_to_end.test_resume import UNTIMED
from tests.faults.children import Child, Ended, truing_child
from truing.train.checkpoint import CheckpointStore, verify

STEPS = 12
"""Of a run: two epochs of 24 pairs, four a step."""
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
ONLINE = (
    "method=grpo",
    "method.num_iterations=2",
    "data.format=text",
    "rewards=rewards.letters",
    "rollout={num_generations: 2, max_completion_length: 4}",
    f"trainer.max_steps={STEPS}",
)
"""Settings of a run that samples its completions, with two steps on each."""
REWARD = """
def letters(completions, **columns):
    return [float(sum(map(str.isalpha, text))) for text in completions]
"""
SMALLEST = {"hidden_size": 8, "layers": 1, "heads": 2, "kv_heads": 1}
"""A model whose step is as short as a step can be."""
LORA = ("model.adapter.type=lora", "model.adapter.dropout=0.1")


@attrs.frozen
class End:
    """What a run that is done leaves behind: the bytes of its weights, its log without times, and what it sampled."""

    weights: bytes
    history: list[dict[str, Any]]
    completions: str
    prompts: dict[int, list[int]]
    """Which each step was on whose weights the run went on from, where that was noted."""
    seconds: float = attrs.field(default=0.0, eq=False)
    """What it took, from its start."""


def end_of(run: Path) -> End:
    """Return what a run left."""
    (weights,) = (run / "model" / name for name in WEIGHTS if (run / "model" / name).exists())
    sampled = run / "completions.jsonl"
    return End(weights.read_bytes(), history(run), sampled.read_text() if sampled.exists() else "", prompts_of(run))


def beside(run: Path) -> Path:
    """Return where it is noted which prompts a run trains on: outside of the run directory, which is to be as it always is."""
    return run.with_name(f"{run.name}.prompts")


def prompts_of(run: Path) -> dict[int, list[int]]:
    """Return the prompts by step; of a step that was done again after a kill, those of the last time."""
    noted = beside(run).read_text().splitlines() if beside(run).exists() else []
    return {line["step"]: line["prompts"] for line in map(json.loads, noted)}


def history(run: Path) -> list[dict[str, Any]]:
    """Return the log without what depends on the machine; NaN and infinities are strings, so that they equal themselves."""
    lines = [json.loads(line, parse_constant=str) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNTIMED} for line in lines]


@attrs.frozen(eq=False)
class Tiny:
    """A configuration of a tiny run with its model and data; each run of it has a folder of its own."""

    config: Path
    _ends: dict[Any, End] = attrs.field(factory=dict)

    @classmethod
    def make(cls, folder: Path, model: dict[str, Any] | None = None, **trainer: Any) -> Tiny:
        """Write configuration, model and data."""
        folder.mkdir(parents=True, exist_ok=True)
        config = write_config(folder, **{"num_epochs": 2, **trainer})
        (folder / "rewards.py").write_text(REWARD)
        if model is not None:
            save_tiny_model(folder / "model", **model)
        return cls(config)

    def start(self, run: Path, *options: str, resume: bool | Path = False, **how: Any) -> Child:
        """Start it, or go on, with its run directory at `run`."""
        resuming = [] if resume is False else ["--resume"] if resume is True else ["--resume", resume]
        said = self.config.parent / "said"  # not beside the run, whose disk may be full
        return truing_child(said, "train", self.config, *options, f"output.dir={run}", *resuming, **how)

    def finish(self, run: Path, *options: str, **how: Any) -> Ended:
        """Start it or go on, and return how it ended, which must be well."""
        ended = self.start(run, *options, **how).wait()
        assert ended.code == 0, ended.said
        return ended

    def unbroken(self, *options: str, before: Callable[[], object] | None = None) -> End:
        """Return what a run ends with that nothing disturbs."""
        key = (options, before)
        if key not in self._ends:
            run, began = self.config.parent / f"unbroken-{len(self._ends)}", time.monotonic()
            self.finish(run, *options, before=before)
            self._ends[key] = attrs.evolve(end_of(run), seconds=time.monotonic() - began)
            shutil.rmtree(run)
        return self._ends[key]


def same(run: Path, unbroken: End) -> None:
    """Raise AssertionError unless a run has ended as the unbroken one, to the last bit."""
    found = end_of(run)
    assert found.completions == unbroken.completions
    assert found.history == unbroken.history
    assert found.prompts == unbroken.prompts
    assert found.weights == unbroken.weights, "the log is the same, and the weights are not"


def whole_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, all of which must be whole."""
    found = CheckpointStore(run / "checkpoints").checkpoints()
    for path in found:
        verify(path)
    return found
