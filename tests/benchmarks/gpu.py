"""Truing's step against TRL's on a CUDA device: the same weights, tokens and optimiser, bf16 autocast, seconds on the clock.

python -m tests.benchmarks.gpu [--cases dpo-0b5-long:8,...] [--rounds 5] [--arms truing,truing-compiled,trl-best] [--profile FOLDER]

The number behind a case is of prompts in a step, 8 where there is none and the method does not say.

Weights and moments are float32, as both sides load them, and both autocast to bf16. Arms run one after the other, for two do not
fit on a device with the memory of their steps. All get the same batches; of each, the median of three steps counts. Losses and
the gradient of the first batch must agree as well as bf16 lets them. Memory is the peak that PyTorch's allocator saw above what
was there before the step: of the first, in which gradients and moments are made, and of the largest later one, in which moments
are there already.

The share of the matmul limit is that of tests/benchmarks/matmul.py, by the fastest of the model's own products in bf16.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from tests.benchmarks.against_trl import make_arm
from tests.benchmarks.arms import SEED, Arm, step_with_gradients
from tests.benchmarks.matmul import linear_shapes, useful_operations
from tests.benchmarks.profiles import Case, Shape, count, make_batch
from tests.benchmarks.truing_arm import OURS
from truing.data.tree import PromptTree

CASES = (
    "dpo-0b5-long:16",
    "grpo-4x8-0b5-long",
    "dpo-1b5-long:4",
    "grpo-1x8-1b5-long",
    "dpo-0b5-long:8",
    "grpo-1x8-0b5-long",
    "dpo-lora-0b5-long:16",
    "grpo-2x8-1b5-long",
)
"""The largest steps for which TRL's fits into 80 GB, and smaller ones."""
ARMS = (*OURS, "trl-best")
REPEATS = 3
LOSS_TOLERANCE = 5e-2
"""Relative, and absolute below 1: a number of bf16 has eight bits, and a loss of margins is of differences."""
GRADIENT_TOLERANCE = 5e-2
"""Of the norm of the difference of all gradients together."""
RATE_POSITIONS = 8192


@attrs.frozen
class Measured:
    """What an arm took."""

    seconds: list[float]
    """For each batch but the first."""
    losses: list[float]
    gradients: dict[str, Tensor]
    """Of the first batch, clipped, on the CPU."""
    grad_norm: float
    """Of the first batch, before it was clipped, which hides a factor."""
    first_peak: float
    """Megabytes of 2^20 bytes."""
    later_peak: float

    def told(self) -> str:
        """Return what is known before the other arms have run, should they not."""
        milliseconds = ", ".join(f"{1e3 * seconds:.0f}" for seconds in self.seconds)
        return f"ms {milliseconds}; MB {self.first_peak:,.0f} and {self.later_peak:,.0f}"


def measure(name: str, case: Case, batches: Sequence[Sequence[PromptTree]], profile: Path | None) -> Measured:
    """Run an arm on all batches."""
    with tempfile.TemporaryDirectory() as folder:
        arm = make_arm(name, case, Path(folder))
        arm.prepare(batches)
        _clean()
        first_peak = _peak_of(arm, batches[0])
        step, gradients = step_with_gradients(arm, batches[0])
        gradients = {parameter: gradient.cpu() for parameter, gradient in gradients.items()}
        _clean()
        # the largest, which also shows every kernel its largest sizes before anything is timed
        later_peak = _peak_of(arm, max(batches, key=lambda trees: count(trees).padded))
        timed = [[_timed(arm, trees) for _ in range(REPEATS)] for trees in batches[1:]]
        if profile is not None:
            _profile(arm, batches[1], profile / f"{case.name}-{name}.txt")
    seconds = [statistics.median(one for one, _ in steps) for steps in timed]
    return Measured(seconds, [steps[-1][1] for steps in timed], gradients, step.grad_norm, first_peak, later_peak)


def _clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _peak_of(arm: Arm, trees: Sequence[PromptTree]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arm.step(trees)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _timed(arm: Arm, trees: Sequence[PromptTree]) -> tuple[float, float]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    step = arm.step(trees)
    torch.cuda.synchronize()
    return time.perf_counter() - started, step.loss


def _profile(arm: Arm, trees: Sequence[PromptTree], file: Path) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        _timed(arm, trees)
    averages = profiler.key_averages()
    orders = ("self_device_time_total", "self_cpu_time_total")
    file.write_text("\n".join(averages.table(sort_by=key, row_limit=40, max_name_column_width=70) for key in orders))


def check(case: Case, found: dict[str, Measured]) -> str:
    """Say how far the arms are apart. Raises AssertionError where that is further than bf16 explains."""
    (first, ours), *others = found.items()
    said = []
    for name, theirs in others:
        for one, other in zip(ours.losses, theirs.losses, strict=True):
            assert abs(one - other) <= LOSS_TOLERANCE * max(1.0, abs(other)), f"{case.name}: losses {one} and {other} of {name}"
        norms = f"{case.name}: gradient norms {ours.grad_norm} and {theirs.grad_norm} of {name}"
        assert abs(ours.grad_norm - theirs.grad_norm) <= GRADIENT_TOLERANCE * theirs.grad_norm, norms
        difference = _apart(ours.gradients, theirs.gradients)
        assert difference <= GRADIENT_TOLERANCE, f"{case.name}: gradients of {first} and {name} differ by {difference:.1e}"
        worst = max(abs(one - other) for one, other in zip(ours.losses, theirs.losses, strict=True))
        said.append(f"{name}: losses differ by up to {worst:.1e}, the gradient by {difference:.1e}")
    return "; ".join(said) or f"loss {ours.losses[0]:.4f}"


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference over that of what is expected, of all parameters together."""
    assert found.keys() == expected.keys(), f"gradients of different parameters: {sorted(found.keys() ^ expected.keys())}"
    squares = torch.zeros(2, dtype=torch.float64)
    for parameter, gradient in expected.items():
        one, other = found[parameter].cuda(), gradient.cuda()
        squares += torch.stack([(one - other).square().sum(), other.square().sum()]).cpu()
    return float((squares[0] / squares[1]).sqrt())


def best_rate(shape: Shape) -> float:
    """Return bf16 operations per second of the fastest of the model's products, forward and backward."""
    products = {(RATE_POSITIONS, inputs, outputs) for inputs, outputs in linear_shapes(shape)}
    products |= {(outputs, RATE_POSITIONS, inputs) for _, inputs, outputs in products}
    return max(_rate(*product) for product in products)


def _rate(rows: int, inner: int, columns: int) -> float:
    left, right = (torch.randn(size, dtype=torch.bfloat16, device="cuda") for size in ((rows, inner), (inner, columns)))
    spent = []
    for _ in range(8):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        for _ in range(10):
            left @ right
        ended.record()
        torch.cuda.synchronize()
        spent.append(started.elapsed_time(ended) / 1e4)
    return 2 * rows * inner * columns / statistics.median(spent)


def row(name: str, case: Case, batches: Sequence[Sequence[PromptTree]], found: dict[str, Measured], rate: float) -> str:
    """Return a case's row of the table for one of Truing's arms."""
    ours, theirs = found[name], found.get("trl-best")
    counts = [count(trees) for trees in batches[1:]]
    pairs = list(zip(counts, ours.seconds, strict=True))
    share = statistics.median(useful_operations(case, one) / rate / seconds for one, seconds in pairs)
    speed = statistics.median(one.unique / seconds for one, seconds in pairs)
    ratio = peaks = "-"
    if theirs is not None:
        ratios = sorted(their / our for their, our in zip(theirs.seconds, ours.seconds, strict=True))
        ratio = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        both = ((ours.first_peak, theirs.first_peak), (ours.later_peak, theirs.later_peak))
        peaks = " | ".join(f"**{our / their:.2f}** ({our:,.0f} / {their:,.0f} MB)" for our, their in both)
    milliseconds = 1e3 * statistics.median(ours.seconds)
    return f"| {name} | {case.name}, {case.prompts} prompts | {ratio} | {milliseconds:.0f} | {speed:,.0f} | {share:.2f} | {peaks} |"


HEADINGS = (
    "arm",
    "case",
    "TRL at its best / Truing",
    "Truing, ms",
    "unique tokens/s",
    "share of the matmul limit",
    "memory of the first step, Truing / TRL",
    "of later steps",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens-per-batch", type=int, help="Truing's token budget of one forward (default: what it finds itself)")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="where to write a profile of a step of each arm")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; tests.benchmarks.against_trl compares on a CPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    rows, disagreements = [], []
    for name in options.cases.split(","):
        torch.manual_seed(SEED)
        kind, _, pairs = name.partition(":")
        case = Case.named(kind, int(pairs or 8), options.tokens_per_batch, "cuda")
        batches = [make_batch(case, seed) for seed in range(options.rounds + 1)]
        found = {}
        for arm in options.arms.split(","):
            try:
                found[arm] = measure(arm, case, batches, options.profile)
                print(f"  {arm}: {found[arm].told()}", flush=True)
            except torch.OutOfMemoryError as error:
                print(f"  {arm}: {str(error).splitlines()[0][:120]}", flush=True)
            _clean()
        ours = [arm for arm in OURS if arm in found]
        if not ours:
            continue
        try:
            print(f"{name}: {check(case, found)}", flush=True)
        except AssertionError as error:
            disagreements.append(str(error))
        else:
            rows += [row(arm, case, batches, found, best_rate(case.shape)) for arm in ours]
    print("\n".join((f"\n| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", *rows)))
    if disagreements:
        raise SystemExit("\n".join(disagreements))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    warnings.simplefilter("ignore", FutureWarning)
    main()
