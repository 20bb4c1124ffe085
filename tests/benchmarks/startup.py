"""How long a user waits for nothing: CPU seconds of whole processes, medians."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.end_to_end.helpers import write_config

ROUNDS = 5


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Return user and system seconds of one process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "truing", *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = str(write_config(folder))
        commands = {
            "truing --help": lambda _: ["--help"],
            "truing check": lambda _: ["check", config],
            "truing train, 2 steps, 32-dim model, save": lambda i: [
                "train",
                config,
                "trainer.max_steps=2",
                f"output.dir={folder / str(i)}",
            ],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for i in range(ROUNDS):
            for name, arguments in commands.items():
                times[name].append(cpu_seconds(arguments(i)))
    for name, seconds in times.items():
        print(f"{name:45} {statistics.median(seconds):6.2f} CPU s (of {', '.join(f'{s:.2f}' for s in sorted(seconds))})")


if __name__ == "__main__":
    main()
