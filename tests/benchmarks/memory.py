"""Memory of one step: how far a process's resident memory rises above what the loaded models take, one process for each arm.

The peak of the first step, above what the process held once its models were loaded and its trainer made; gradients and the
optimiser's two moments are in it, the same on every side. The batch is the one with the most unique tokens of five. Linux only:
the peak is the kernel's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.benchmarks.arms import SEED
from tests.benchmarks.profiles import Case, count, make_batch

BATCHES = 5


def compared(case: Case, names: Sequence[str], say: Callable[[str], None]) -> str:
    """Measure every arm and return Truing's memory over that of TRL at its best, where that is among them."""
    peaks = {name: _in_a_process(case, name) for name in names}
    say(f"  step memory in MB: {', '.join(f'{name} {peak:,.0f}' for name, peak in peaks.items())}")
    if "trl-best" not in peaks:
        return "-"
    ours, theirs = peaks["truing"], peaks["trl-best"]
    return f"**{ours / theirs:.2f}** ({ours:,.0f} / {theirs:,.0f} MB)"


def _in_a_process(case: Case, name: str) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.memory", name, case.name, str(case.prompts)]
    command += [str(case.tokens_per_batch)] if case.tokens_per_batch else []
    # the allocator as it is: the timing's own setting would count what is free as used
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def measure(case: Case, name: str) -> float:
    """Load the models of an arm, run a step, and return its peak in megabytes of 2^20 bytes."""
    from tests.benchmarks.against_trl import make_arm

    batches = [make_batch(case, seed) for seed in range(BATCHES)]
    largest = max(batches, key=lambda trees: count(trees).unique)
    with tempfile.TemporaryDirectory() as folder:
        arm = make_arm(name, case, Path(folder))
        arm.prepare(batches)
        return _peak_of(lambda: arm.step(largest))


def _peak_of(work: Callable[[], object]) -> float:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is given back, so that it does not hide a step's memory
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    arm, case, *numbers = sys.argv[1:]
    print(measure(Case.named(case, *map(int, numbers)), arm))
