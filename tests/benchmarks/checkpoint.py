"""What a checkpoint costs beyond its bytes, and how long training waits for one that is written in the background."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from truing.train.checkpoint import CheckpointStore, Contents
from truing.train.checkpoint.background import Snapshot
from truing.train.checkpoint.tensors import safetensors_chunks

MEGABYTES = 500
TENSORS = 40
ROUNDS = 5
PIECE = 8 << 20
ABOUT = {"world_size": 1, "sharded": False, "identity": {}, "config": {}, "libraries": {}}


def write_plainly(path: Path, tables: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write and fsync the same bytes, and nothing else."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for table in tables.values():
        for chunk in safetensors_chunks(table):
            view = memoryview(chunk)
            for start in range(0, len(view), PIECE):
                os.write(file, view[start : start + PIECE])
    os.fsync(file)
    os.close(file)


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of a call; writing is waiting, which CPU seconds do not see."""
    os.sync()  # what was written and deleted before is not this call's to wait for
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print the figures."""
    size = MEGABYTES * 10**6 // 4 // TENSORS
    tables = {name: {f"{name}.{i}": torch.randn(size) for i in range(part)} for name, part in (("weights", 13), ("optimizer", 27))}
    snapshot = Snapshot()
    first = seconds(lambda: snapshot.of(tables))
    times: dict[str, list[float]] = {"plain": [], "checkpoint": [], "copy": []}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        store = CheckpointStore(folder / "checkpoints")
        for step in range(1, ROUNDS + 1):
            times["plain"].append(seconds(lambda: write_plainly(folder / "plain", tables)))
            (folder / "plain").unlink()
            times["checkpoint"].append(seconds(lambda step=step: store.save(Contents(tensors=tables), step=step, **ABOUT)))
            store.put_aside_after(0)
            shutil.rmtree(store.folder)
            times["copy"].append(seconds(lambda: snapshot.of(tables)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{MEGABYTES} MB, medians of {ROUNDS}, wall seconds:")
    print(f"  written and fsynced plainly     {medians['plain']:.2f}")
    ratios = sorted(one / other for one, other in zip(times["checkpoint"], times["plain"], strict=True))
    print(f"  as a checkpoint                 {medians['checkpoint']:.2f}, {statistics.median(ratios):.2f} times")
    print(f"    (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    share = medians["copy"] / medians["checkpoint"]
    print(f"  training waits for a copy       {medians['copy']:.2f}, {share:.2f} of the checkpoint (the first one {first:.2f})")


if __name__ == "__main__":
    main()
