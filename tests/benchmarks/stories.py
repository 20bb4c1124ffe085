"""What GRPO learns of a reward of three lines: python -m tests.benchmarks.stories MODEL PROMPTS [--steps 100] [--seeds 42].

A small model that goes on with openings of stories (`MODEL`, a folder in the Hugging Face format; `PROMPTS`, JSON Lines with a
column `text`) is rewarded for a word and for a length. No prompt comes twice while there are four a step. Printed is the mean
reward of every ten steps, and how the last ten compare with the first step, whose completions are those of the model as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

import truing

SHOWN = 10
"""Steps whose rewards are one printed mean."""


def happy_and_short(completions: list[str], **columns: object) -> list[float]:
    """Return a point for the word "happy", and up to one for a length near twelve words."""
    lengths = [len(text.split()) for text in completions]
    return [("happy" in text) + max(0.0, 1 - abs(length - 12) / 12) for text, length in zip(completions, lengths, strict=True)]


@attrs.frozen
class Curve:
    """The mean reward of every step of a run, and the CPU seconds that the run took."""

    seed: int
    rewards: tuple[float, ...]
    seconds: float

    @property
    def means(self) -> dict[int, float]:
        """Means of some steps each, by the last of these."""
        starts = range(0, len(self.rewards), SHOWN)
        parts = [self.rewards[start : start + SHOWN] for start in starts]
        return {start + len(part): statistics.mean(part) for start, part in zip(starts, parts, strict=True)}

    @property
    def line(self) -> str:
        """What is printed."""
        means = self.means
        by_step = " ".join(f"{step}:{value:.3f}" for step, value in means.items())
        last, first = list(means.values())[-1], self.rewards[0]
        return (
            f"seed {self.seed}: first step {first:.3f}; means up to step {by_step}; "
            f"last over first {last / first:.2f}, over the first {SHOWN} steps' {last / means[min(means)]:.2f}; "
            f"{self.seconds:.0f} CPU s"
        )


def learn(model: Path, prompts: Path, steps: int, seed: int, folder: Path) -> Curve:
    """Train, and return the curve."""
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        state = truing.align(
            model=model,
            dataset=prompts,
            format="text",
            method="grpo",
            rewards=[happy_and_short],
            rollout={"num_generations": 8, "max_completion_length": 64},
            learning_rate=1e-3,
            warmup_ratio=0.1,
            batch_size=4,
            max_steps=steps,
            logging_steps=1,
            seed=seed,
            output_dir=folder / str(seed),
        )
    rewards = tuple(line["reward"] for line in state.history if "reward" in line)
    return Curve(seed, rewards, time.process_time() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with each seed, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stories", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", default="42")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, options.seeds.split(",")):
            print(learn(options.model, options.prompts, options.steps, seed, Path(folder)).line, flush=True)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    main()
