"""Whole GRPO steps, sampling included, beside TRL's: python -m tests.benchmarks.online_step [--cases ...] [--rounds 5].

TRL's arm is the library's generate() as its trainer calls it, every prompt repeated for its completions, and then its trainer's
step; Truing's is its backend and its step. Both complete the same prompts with completions of the same lengths, and train on the
same tokens. One thread, float32, CPU seconds; in each round the arms run on the same prompts in random order, and a round's ratio
is TRL's seconds over Truing's. Rewards, which both would call alike, are left out.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
from transformers import PreTrainedModel

from tests.benchmarks import generation
from tests.benchmarks.against_trl import check_gradients, make_arm
from tests.benchmarks.arms import SEED, Arm
from tests.benchmarks.profiles import Case, make_batch, make_model
from truing.data.tree import PromptTree

CASES = ("grpo-1x8-h256-long", "grpo-1x8-h512-long", "grpo-3x8-h256-long")
ARMS = ("truing", "trl-best")
WAYS = {"truing": generation.truing, "trl-best": generation.generate}


@attrs.frozen
class Seconds:
    """CPU seconds of a step's parts."""

    sampling: float
    training: float

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.sampling + self.training


def trees_of(case: Case, seed: int) -> list[PromptTree]:
    """Return a batch whose completions have geometric lengths, as those of generation are."""
    draw = random.Random(f"lengths {seed}")
    trees = []
    for tree in make_batch(case, seed):
        branches = []
        for branch in tree.branches:
            length = generation.geometric(case.profile, draw)
            ids = tuple(draw.choices(branch.token_ids, k=length))
            branches.append(attrs.evolve(branch, token_ids=ids, loss_mask=(True,) * length))
        trees.append(attrs.evolve(tree, branches=tuple(branches)))
    return trees


def whole_step(arm: Arm, sampled: PreTrainedModel, trees: Sequence[PromptTree]) -> Seconds:
    """Sample as many tokens as the trees have, and train on the trees."""
    lengths = [[len(branch.token_ids) for branch in tree.branches] for tree in trees]
    started = time.process_time()
    with torch.no_grad():
        WAYS[arm.name](sampled, [tree.prompt_ids for tree in trees], lengths)
    between = time.process_time()
    arm.step(trees)
    return Seconds(between - started, time.process_time() - between)


def compare(case: Case, rounds: int) -> list[dict[str, Seconds]]:
    """Print and return the seconds of every round, by arm; the first batch is for checks and for warming up."""
    sampled = make_model(case).eval()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        arms = [make_arm(name, case, Path(folder)) for name in ARMS]
        print(f"{case.name}: {check_gradients(case, arms, trees_of(case, 0))}", flush=True)
        for seed in range(1, rounds + 1):
            trees = trees_of(case, seed)
            done = {arm.name: whole_step(arm, sampled, trees) for arm in random.Random(seed).sample(arms, len(arms))}
            found.append(done)
            said = (f"{name} {one.sampling:.1f} + {one.training:.1f}" for name, one in sorted(done.items()))
            print(f"  CPU seconds of sampling + training: {', '.join(said)}", flush=True)
    return found


def row(case: Case, rounds: Sequence[dict[str, Seconds]]) -> str:
    """Return a case's row of the table."""

    def ratio(part: Callable[[Seconds], float]) -> str:
        ratios = sorted(part(done["trl-best"]) / part(done["truing"]) for done in rounds)
        return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"

    parts = (lambda one: one.sampling, lambda one: one.training, lambda one: one.total)
    return f"| {case.name} | {' | '.join(map(ratio, parts))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.online_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    cases = [Case.named(name, pairs=1) for name in options.cases.split(",")]
    rows = [row(case, compare(case, options.rounds)) for case in cases]
    print("\n".join(("| case | sampling | training | whole step |", "|---|---|---|---|", *rows)))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    main()
