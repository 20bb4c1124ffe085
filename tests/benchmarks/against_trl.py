"""Truing's step against TRL's: the same weights, tokens and optimiser, one thread, float32, CPU seconds.

python -m tests.benchmarks.against_trl [--cases dpo-h256-long,...] [--rounds 5] [--pairs 8] [--arms ...] [--memory] [--smoke]

Before anything is timed, one batch goes through every arm: losses must agree to 1e-4, and so must the gradient of every parameter
(relative, in the Euclidean norm). In each round all arms get the same fresh batch, in random order; losses must agree again. A
round's ratio is TRL's CPU seconds over Truing's, and the table shows the median and all of them.

glibc is as it is: it gives freed memory back, which is mapped and cleared anew in every step. On a virtual machine that costs as
much as the arithmetic, and most for whom needs most memory: TRL. `--allocator=keep` shows what remains where it is told to keep it.

tests/benchmarks/matmul.py says what the share of the matmul limit is, tests/benchmarks/memory.py what the memory is. TRL is not a
dependency of Truing: `make bench` runs this in an environment of its own.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch

from tests.benchmarks.arms import SEED, Arm, Step, step_with_gradients, worst_gradient
from tests.benchmarks.matmul import best_rate, useful_operations
from tests.benchmarks.profiles import Case, TokenCounts, count, make_batch
from tests.benchmarks.truing_arm import OURS, TruingArm
from truing.data.tree import PromptTree

CASES = (
    "dpo-h256-long",
    "dpo-h256-chat",
    "dpo-h512-long",
    "dpo-precomputed-h256-long",
    "dpo-precomputed-h512-long",
    "dpo-lora-h256-long",
    "grpo-1x8-h256-long",
    "grpo-1x8-h512-long",
    "grpo-3x8-h256-long",
    "kto-h256-long",
    "orpo-h256-long",
    "simpo-h256-long",
    "rm-h256-long",
    "sft-h256-mixed",
)
SMOKE_CASES = tuple(f"{method}-tiny-tiny" for method in dict.fromkeys(case.rsplit("-", 2)[0] for case in CASES))
ARMS = ("truing", "trl-best", "trl-shipped")
TOLERANCE = 1e-4
KEEP_MEMORY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""With these, glibc keeps what is freed; it reads them when a process starts."""


@attrs.frozen
class Seconds:
    """What a step took."""

    cpu: float
    wall: float


@attrs.frozen
class Round:
    """A batch, and what each arm took for it."""

    counts: TokenCounts
    seconds: dict[str, Seconds]

    def ratio(self, arm: str) -> float:
        """Return the arm's CPU seconds over Truing's."""
        return self.seconds[arm].cpu / self.seconds["truing"].cpu


def make_arm(name: str, case: Case, folder: Path) -> Arm:
    """Return an arm with its models loaded."""
    if name in OURS:
        return TruingArm(case, folder, compiled=name == "truing-compiled")
    from tests.benchmarks.trl_arms import trl_arm

    return trl_arm(case, folder, best=name == "trl-best")


def timed(arm: Arm, trees: Sequence[PromptTree]) -> tuple[Step, Seconds]:
    """Run a step and time it, the collector of garbage held back."""
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        step = arm.step(trees)
        return step, Seconds(time.process_time() - cpu, time.perf_counter() - wall)
    finally:
        gc.enable()


def check_losses(case: Case, steps: dict[str, Step]) -> None:
    """Raise AssertionError where the losses of one batch differ."""
    losses = {name: step.loss for name, step in steps.items()}
    spread = max(losses.values()) - min(losses.values())
    assert spread <= TOLERANCE * max(1.0, *map(abs, losses.values())), f"{case.name}: losses differ: {losses}"


def check_gradients(case: Case, arms: Sequence[Arm], trees: Sequence[PromptTree]) -> str:
    """Warm up every arm with one batch, and say how far losses and gradients are apart. Raises AssertionError beyond 1e-4."""
    results = {arm.name: step_with_gradients(arm, trees) for arm in arms}
    check_losses(case, {name: step for name, (step, _) in results.items()})
    first, found = results[arms[0].name]
    said = [f"loss {first.loss:.5f}, gradient norm {first.grad_norm:.4f}"]
    for arm in arms[1:]:
        difference, parameter = worst_gradient(found, results[arm.name][1])
        assert difference <= TOLERANCE, f"{case.name}: the gradient of {parameter} differs from {arm.name}'s by {difference:.1e}"
        norm = results[arm.name][0].grad_norm  # clipping hides a factor from the gradients themselves
        assert abs(first.grad_norm - norm) <= TOLERANCE * norm, f"{case.name}: gradient norms {first.grad_norm}, {arm.name} {norm}"
        loss_difference = abs(first.loss - results[arm.name][0].loss)
        said.append(f"{arm.name}: loss differs by {loss_difference:.1e}, gradients by up to {difference:.1e} ({parameter})")
    return "; ".join(said)


def compare(case: Case, names: Sequence[str], rounds: int, say: Callable[[str], None]) -> list[Round]:
    """Return the rounds of a case; the first batch is for checks and for warming up."""
    batches = [make_batch(case, seed) for seed in range(rounds + 1)]
    with tempfile.TemporaryDirectory() as folder:
        arms = [make_arm(name, case, Path(folder)) for name in names]
        for arm in arms:
            arm.prepare(batches)
        say(f"{case.name}: {check_gradients(case, arms, batches[0])}")
        for arm in arms:  # the largest, so that no later step needs memory that the process has not touched yet
            arm.step(max(batches, key=lambda trees: count(trees).padded))
        done = []
        for index, trees in enumerate(batches[1:]):
            results = {arm.name: timed(arm, trees) for arm in random.Random(index).sample(arms, len(arms))}
            check_losses(case, {name: step for name, (step, _) in results.items()})
            done.append(Round(count(trees), {name: seconds for name, (_, seconds) in results.items()}))
            say(_describe(done[-1], results["truing"][0]))
    return done


def _describe(done: Round, step: Step) -> str:
    counts = done.counts
    times = ", ".join(f"{name} {seconds.cpu:.2f} ({seconds.wall:.2f})" for name, seconds in sorted(done.seconds.items()))
    return (
        f"  tokens padded {counts.padded:,}, real {counts.real:,}, unique {counts.unique:,}; loss {step.loss:.5f}; "
        f"CPU (wall) seconds: {times}"
    )


def row(case: Case, rounds: Sequence[Round], rate: float, memory: str) -> str:
    """Return a case's row of the table."""
    share = statistics.median(useful_operations(case, r.counts) / rate / r.seconds["truing"].cpu for r in rounds)
    cells = [case.name, *(_ratios(rounds, arm) for arm in ARMS[1:]), f"{share:.2f}", memory]
    return f"| {' | '.join(cells)} |"


def _ratios(rounds: Sequence[Round], arm: str) -> str:
    if arm not in rounds[0].seconds:
        return "-"
    ratios = sorted(done.ratio(arm) for done in rounds)
    return f"**{statistics.median(ratios):.2f}** ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against_trl", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", help=f"names with commas between; a case is method-shape-profile (default: {','.join(CASES)})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8, help="prompts of a DPO step")
    parser.add_argument("--tokens-per-batch", type=int, help="Truing's token budget of one forward (default: what it finds itself)")
    parser.add_argument("--arms", default=",".join(ARMS), help="without trl-* only Truing runs, and TRL need not be there")
    parser.add_argument("--allocator", choices=("default", "keep"), default="default", help="what glibc does with freed memory")
    parser.add_argument("--memory", action="store_true", help="also measure memory, in a process for each arm")
    parser.add_argument("--smoke", action="store_true", help="tiny models, two rounds, a few seconds; no figure means anything")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print the table."""
    options = _options(arguments)
    asked = options.arms.split(",")
    if not {"truing"} <= set(asked) <= set(ARMS):
        raise SystemExit(f"--arms {options.arms}: truing, and of {', '.join(ARMS)} what it is to be compared with")
    names = [name for name in asked if name == "truing" or importlib.util.find_spec("trl")]
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    chosen = options.cases.split(",") if options.cases else SMOKE_CASES if options.smoke else CASES
    cases = [Case.named(name, 3 if options.smoke else options.pairs, options.tokens_per_batch) for name in chosen]
    rows = []
    for case in cases:
        rate = best_rate(case.shape, 0.01 if options.smoke else 0.1)
        print(f"{case.name}: best product {rate / 1e9:.0f} GFLOP per CPU second", flush=True)
        rounds = compare(case, names, 2 if options.smoke else options.rounds, lambda line: print(line, flush=True))
        memory = _memory(case, names) if options.memory else "-"
        rows.append(row(case, rounds, rate, memory))
        print(rows[-1], flush=True)
    print(f"\n| case | {' | '.join(HEADINGS)} |\n|{'---|' * (1 + len(HEADINGS))}")
    print("\n".join(rows))


HEADINGS = ("TRL at its best / Truing", "TRL as shipped / Truing", "share of the matmul limit", "memory, Truing / TRL")


def _memory(case: Case, names: Sequence[str]) -> str:
    from tests.benchmarks.memory import compared

    return compared(case, names, lambda line: print(line, flush=True))


if __name__ == "__main__":
    if _options(None).allocator == "keep" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks.against_trl", *sys.argv[1:]], os.environ | KEEP_MEMORY)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    warnings.simplefilter("ignore", FutureWarning)
    main()
