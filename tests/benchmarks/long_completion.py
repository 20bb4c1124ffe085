"""One long completion among short ones, in one GRPO step: python -m tests.benchmarks.long_completion [--tokens 8192] [--rounds 5].

Rows padded to the longest would make every completion as dear as the longest. Here a step on all eight completions of a prompt is
timed against a step on the long one alone and one on the short ones alone, which compute the prompt twice. One thread, float32,
CPU seconds; each round has a fresh prompt and fresh completions, and its three steps come in random order.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch

from tests.benchmarks.against_trl import make_arm, timed
from tests.benchmarks.arms import SEED
from tests.benchmarks.profiles import SPECIAL_IDS, Case, count, make_batch
from truing.data.tree import PromptTree

CASE = "grpo-1x8-h256-long"
TOKENS = 8192


def trees_of(case: Case, tokens: int, seed: int) -> dict[str, PromptTree]:
    """Return a prompt with its completions, the last of them a long one: all together, the short ones alone, the long one alone."""
    (tree,) = make_batch(case, seed)
    draw = random.Random(f"long {seed}")
    ids = tuple(draw.randrange(SPECIAL_IDS, case.shape.vocabulary) for _ in range(tokens))
    *short, last = tree.branches
    long = attrs.evolve(last, token_ids=ids, loss_mask=(True,) * tokens)
    parts = {"together": (*short, long), "short": tuple(short), "long": (long,)}
    return {name: attrs.evolve(tree, branches=branches) for name, branches in parts.items()}


def compare(case: Case, tokens: int, rounds: int) -> list[dict[str, float]]:
    """Return the CPU seconds of every round's three steps; a round before the first one warms up."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        arm = make_arm("truing", case, Path(folder))
        for seed in range(rounds + 1):
            trees = trees_of(case, tokens, seed)
            order = random.Random(seed).sample(sorted(trees), len(trees))
            found.append({name: timed(arm, [trees[name]])[1].cpu for name in order})
    return found[1:]


def line(case: Case, tokens: int, rounds: Sequence[Mapping[str, float]]) -> str:
    """Return the figure: the step on all over the sum of the others, and what rows padded to the longest would be."""
    ratios = sorted(done["together"] / (done["short"] + done["long"]) for done in rounds)
    seconds = ", ".join(f"{name} {statistics.median(done[name] for done in rounds):.2f}" for name in ("short", "long", "together"))
    counts = count([trees_of(case, tokens, 1)["together"]])
    return (
        f"{case.name}, the last completion of {tokens:,} tokens: together / (short + long) = {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}); CPU seconds: {seconds}; of the first round {counts.unique:,} tokens, "
        f"and {counts.padded:,} slots in rows padded to the longest"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.long_completion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", default=CASE)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    case = Case.named(options.case, pairs=1)
    print(line(case, options.tokens, compare(case, options.tokens, options.rounds)))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    main()
