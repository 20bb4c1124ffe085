"""What the tests of the reward runner share."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from tests.core import some_rewards
from truing.config import RewardEntry
from truing.context import OpenContext
from truing.rewards import FunctionReward
from truing.testing import fake_completions

FOLDER = Path(some_rewards.__file__).parent
COMPLETIONS = fake_completions(["a", "bad", "cc"])


def run_context(run_dir: Path) -> OpenContext:
    """The context of a run that has no model, for rewards that need none."""
    return OpenContext(tokenizer=None, device=None, run_dir=run_dir, seed=7)


def entry(name, **settings):
    return RewardEntry(reward=FunctionReward(name=f"some_rewards.{name}", base_dir=FOLDER), **settings)


def column(scored, place=0):
    return [row[place] for row in scored.values]


def workers_of(pid):
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("truing.rewards.worker" in part for part in process.cmdline()):
                found.append(process)
    return found
