"""A checkpoint against plainly writing and syncing the same bytes, and how long training waits for one that is written beside it.

Wall seconds, on whatever disk the folder for temporary files is; rounds of all arms in turn, medians.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.helpers import save_tiny_model, write_config
from truing.config import load_config
from truing.registry import Registry
from truing.train.checkpoint import CheckpointStore, Contents
from truing.train.checkpoint.tensors import safetensors_chunks
from truing.train.console import Reporter
from truing.train.loop import train
from truing.train.saving import Saver

ROUNDS = 5
MEGABYTES = 500
PIECE = 8 << 20
TENSORS = 40
"""In each of weights and the optimiser's two moments."""
LARGE = {"hidden_size": 752, "layers": 8}
"""Of a model whose checkpoint has about as many megabytes."""
ABOUT = {"world_size": 1, "sharded": False, "identity": {}, "config": {}, "libraries": {}}


def state(megabytes: int) -> Contents:
    """Return weights and two moments of random numbers, float32, so many megabytes altogether."""
    numbers = megabytes * 1_000_000 // 4 // 3 // TENSORS
    tables = {
        "weights": {f"layer.{i}": torch.randn(numbers) for i in range(TENSORS)},
        "optimizer": {f"{field}.layer.{i}": torch.randn(numbers) for field in ("exp_avg", "exp_avg_sq") for i in range(TENSORS)},
    }
    return Contents(tensors=tables, documents={"state.json": b"{}"})


def write_plainly(files: dict[str, bytes], folder: Path) -> None:
    """Write the same files in pieces, and sync each."""
    folder.mkdir()
    for name, data in files.items():
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o666)
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            os.write(file, view[start : start + PIECE])
        os.fsync(file)
        os.close(file)


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of something."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(megabytes: int = MEGABYTES, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Return the seconds of every arm, by its name."""
    contents = state(megabytes)
    files = {f"{name}.safetensors": b"".join(map(bytes, safetensors_chunks(table))) for name, table in contents.tensors.items()}
    times: dict[str, list[float]] = {"plain": [], "checkpoint": []}
    with tempfile.TemporaryDirectory() as name:
        plain, store = Path(name) / "plain", CheckpointStore(Path(name) / "checkpoints")
        for number in range(rounds):
            os.sync()
            times["plain"].append(seconds(lambda: write_plainly(files, plain)))
            shutil.rmtree(plain)
            os.sync()
            times["checkpoint"].append(seconds(lambda step=number: store.save(contents, step=step, **ABOUT)))
            shutil.rmtree(store.folder)
    return times


def stalls(rounds: int = ROUNDS, **model: Any) -> list[float]:
    """Return the seconds that the training thread spends in each save of a run that writes in the background, one after the other.

    They are those of looking at the state, copying it and starting the thread that writes.
    """
    found: list[float] = []
    real = Saver.save

    def save(saver: Saver, *, wait: bool = False) -> Path:
        del wait
        found.append(seconds(lambda: real(saver)))
        saver.settle()
        return saver.run.run_dir.store.path(saver.run.state.step)

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "save", save)
        config = write_config(Path(name), max_steps=rounds + 1, save_steps=1, save_total_limit=1)
        save_tiny_model(Path(name) / "model", **model)
        train(load_config(config, registry=Registry.load()), reporter=Reporter(quiet=True))
    return found


def listed(found: list[float]) -> str:
    """Return numbers in order."""
    return ", ".join(f"{one:.2f}" for one in sorted(found))


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    times = measure()
    first, *later = stalls(**LARGE)
    times |= {"stall, first": [first], "stall, later": later}
    medians = {arm: statistics.median(found) for arm, found in times.items()}
    for arm, found in times.items():
        print(f"{arm:14} {medians[arm]:6.2f} s for {MEGABYTES} MB (of {listed(found)})")
    ratios = [whole / plain for whole, plain in zip(times["checkpoint"], times["plain"], strict=True)]
    print(f"checkpoint / plain: {statistics.median(ratios):.2f}, median of rounds (of {listed(ratios)})")
    for arm in ("stall, first", "stall, later"):
        print(f"{arm} / checkpoint: {medians[arm] / medians['checkpoint']:.2f}")


if __name__ == "__main__":
    main()
