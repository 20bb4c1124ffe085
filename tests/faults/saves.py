"""Checkpoints with known contents, saved one after the other as a run does, without a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file

from truing.train.checkpoint import CheckpointStore, Contents, DamagedError, verify

ABOUT = {"world_size": 1, "sharded": False, "identity": {"seed": 1}, "config": {"trainer.seed": 1}, "libraries": {"torch": "2"}}


@attrs.frozen
class Version:
    """What a checkpoint holds: a step, and how often that step was saved before."""

    step: int
    again: int = 0

    def contents(self, numbers: int) -> Contents:
        """Return tensors of so many numbers altogether, and a document, that only this version has."""
        generator = torch.Generator().manual_seed(1000 * self.step + self.again)
        tensors = {"weights": {"a": torch.randn(numbers // 3, generator=generator)}, "loss_state": {}}
        tensors["optimizer"] = {"exp_avg.a": tensors["weights"]["a"] / 2, "exp_avg_sq.a": tensors["weights"]["a"] ** 2}
        return Contents(tensors=tensors, documents={"state.json": json.dumps(attrs.asdict(self)).encode()})


def save(folder: Path, version: Version, *, numbers: int = 300, keep: int | None = None) -> Path:
    """Save a version."""
    return CheckpointStore(folder).save(version.contents(numbers), keep=keep, step=version.step, **ABOUT)


def found(path: Path, numbers: int = 300) -> Version:
    """Return which version a checkpoint is of. Raises DamagedError or AssertionError unless it is that to the last bit."""
    verify(path)
    version = Version(**json.loads((path / "state.json").read_text()))
    for name, table in version.contents(numbers).tensors.items():
        tensors = load_file(path / f"{name}.safetensors")
        assert tensors.keys() == table.keys()
        assert all(torch.equal(tensors[key], table[key]) for key in table), f"{path / name} is not that of {version}"
    return version


def newest(folder: Path, numbers: int = 300) -> Version | None:
    """Return, after what a resume does first, the newest version of which there is a whole checkpoint."""
    store = CheckpointStore(folder)
    store.tidy()
    for path in reversed(store.checkpoints()):
        try:
            return found(path, numbers)
        except DamagedError:
            continue
    return None


def versions(replacing: bool) -> Iterator[Version]:
    """Yield one version after the other; each step twice where checkpoints are to be replaced."""
    step = 0
    while True:
        step += 1
        yield Version(step)
        if replacing:
            yield Version(step, 1)
