"""Whatever a reward does in its worker process costs its samples alone, and is counted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs
import psutil
import pytest

from tests.core import misbehaviour
from tests.core.reward_calls import run_context
from truing.config import RewardEntry
from truing.rewards import FunctionReward
from truing.rewards.runner import RewardRunner
from truing.testing import fake_completions

ONE, ALL, NONE = (False, True, False), (True, True, True), (False, False, False)
"""Which of the three completions "good", "bad" and "fair" fail."""
KINDS = {
    "raises": (ONE, r"ValueError: no such answer \(\S*misbehaviour.py:\d+\)"),
    "raises_without_words": (ONE, "SilentError without a message that can be read"),
    "raises_what_cannot_be_sent": (ONE, r"ValueError: \?"),
    "interrupts_itself": (ONE, "KeyboardInterrupt"),
    "exits": (ONE, "SystemExit: 0"),
    "exits_hard": (ONE, "its process ended itself with exit code 0"),
    "crashes": (ONE, "its process died of SIGSEGV"),
    "is_killed": (ONE, "its process died of SIGKILL"),
    "hangs": (ONE, "not answered within 1 s, so that its process was killed"),
    "hangs_in_c": (ONE, "not answered within 1 s, so that its process was killed"),
    "allocates": (ONE, "MemoryError"),
    "recurses": (ONE, "RecursionError"),
    "closes_everything": (ONE, "its process"),
    "writes_everywhere": (ONE, "its process sent what is no answer, and was killed"),
    "leaves_a_child": (NONE, ""),
    "text_for_a_score": (ONE, "returned str '1.0' for completion 1; a score is a number or None"),
    "list_for_a_score": (ONE, r"returned list \[1.0\] for completion 1"),
    "nan": (ONE, "returned nan for completion 1"),
    "infinity": (ONE, "returned inf for completion 1"),
    "minus_infinity": (ONE, "returned -inf for completion 1"),
    "absurd": (ONE, r"returned 3e\+38 for completion 1; a score is at most 1e\+15 in size, or None"),
    "text": (ALL, "must return a list with a number or None for each completion, got str '123'"),
    "nothing": (ALL, "got NoneType None"),
    "boolean": (ALL, "got bool True"),
    "mapping": (ALL, "got dict"),
    "scalar": (ALL, "got float 1.0"),
    "generator": (ALL, "got generator"),
    "too_few": (ALL, "returned 1 scores for 3 completions; one for each is needed"),
    "too_many": (ALL, "returned 4 scores for 3 completions"),
    "matrix": (ALL, "is not one number"),
    "tensor": (NONE, ""),
    "tensor_of_no_dimension": (ALL, "must return a list with a number or None for each completion, got Tensor tensor"),
    "tensor_of_rows": (ALL, r"returned Tensor tensor\(\[1., 1.\]\) for completion 0, which is not one number"),
    "mutates": (NONE, ""),
    "prints": (NONE, ""),
    "async_text": (ALL, "got str '123'"),
    "async_raises": (ONE, "ValueError: no such answer"),
    "async_hangs": (ONE, "no answer within 1 s"),
    "async_exits": (ONE, "SystemExit: 1"),
    "async_exits_hard": (ONE, "its process ended itself with exit code 1"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All of them at once, beside each other in the same processes: the completions, the scores and the run directory."""
    folder = Path(misbehaviour.__file__).parent
    entries = [
        RewardEntry(reward=FunctionReward(name=f"misbehaviour.{kind}", base_dir=folder), timeout=1.0 if "hangs" in kind else 60.0)
        for kind in KINDS
    ]
    context = run_context(tmp_path_factory.mktemp("run"))
    completions = [attrs.evolve(one, columns={"answer": ["3"]}) for one in fake_completions(["good", "bad", "fair"])]
    with RewardRunner(entries, context, workers=3, memory_mb=512) as runner:
        scored = runner.submit(completions).result()
    return completions, scored, context.run_dir


@pytest.mark.parametrize("kind", KINDS)
def test_misbehaviour_costs_its_samples(kind, run):
    _, scored, _ = run
    failed, message = KINDS[kind]
    place = list(KINDS).index(kind)
    assert tuple(row[place] for row in scored.values) == tuple(None if fails else misbehaviour.RIGHT for fails in failed)
    assert scored.errors.get(f"misbehaviour.{kind}", 0) == sum(failed)
    found = scored.messages.get(f"misbehaviour.{kind}", "")
    assert re.search(message, found) if message else not found


def test_there_are_more_than_twenty_kinds():
    assert len(KINDS) > 20


def test_inputs_stay_as_they_were(run):
    completions, _, _ = run
    assert [(one.text, one.columns) for one in completions] == [(text, {"answer": ["3"]}) for text in ("good", "bad", "fair")]


def test_what_is_printed_is_in_the_run_directory_and_bounded(run):
    _, _, run_dir = run
    sizes = {path.name: path.stat().st_size for path in run_dir.glob("rewards.log*")}
    assert set(sizes) == {"rewards.log", "rewards.log.1"} and sum(sizes.values()) < 11 * 2**20


def test_nothing_is_left_running(run):
    assert not [child for child in psutil.Process(os.getpid()).children(recursive=True) if "rewards" in " ".join(child.cmdline())]
    assert not [process for process in psutil.process_iter() if process_is_the_child_left(process)]


def process_is_the_child_left(process: psutil.Process) -> bool:
    try:
        return process.cmdline() == ["sleep", "1000"]
    except psutil.Error:
        return False
