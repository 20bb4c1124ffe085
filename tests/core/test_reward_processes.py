"""Worker processes of rewards: how many, what runs beside what, and when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.core.reward_calls import COMPLETIONS, FOLDER, column, entry, run_context, workers_of
from truing.rewards.runner import RewardRunner


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path)


def test_submitting_does_not_wait_and_calls_run_beside_each_other(context):
    with RewardRunner([entry("slow"), entry("slow")], context, workers=4) as runner:
        [pending.result() for pending in [runner.submit(COMPLETIONS) for _ in range(2)]]  # all processes are there now
        begun = time.monotonic()
        pending = [runner.submit(COMPLETIONS) for _ in range(2)]
        assert time.monotonic() - begun < 0.25 and not pending[0].done()
        assert pending[0].result().values == pending[1].result().values == ((1.0, 1.0),) * 3
        assert time.monotonic() - begun < 1.8, "four calls of half a second, by four processes"


def test_the_deadline_of_a_call_begins_with_it_and_not_with_its_wait(context):
    with RewardRunner([entry("slow", timeout=2.5)], context, workers=1) as runner:
        pending = [runner.submit(COMPLETIONS[:1]) for _ in range(7)]
        assert [column(one.result()) for one in pending] == [[1.0]] * 7


def test_awaited_rewards_are_awaited_together_in_one_process(context):
    with RewardRunner([entry("awaited")], context, workers=1) as runner:
        runner.submit(COMPLETIONS).result()
        begun = time.monotonic()
        pending = [runner.submit(COMPLETIONS) for _ in range(20)]
        counts = [min(column(one.result())) for one in pending]
        assert time.monotonic() - begun < 20 * 0.3 / 2
    assert min(counts) > 4 * 3, "how many had begun when the first ended"


def test_an_awaited_call_that_ends_its_process_costs_no_other_call(context):
    with RewardRunner([entry("exits_for_bad")], context, workers=1) as runner:
        runner.submit(COMPLETIONS[:1]).result()
        pending = [runner.submit([one]) for one in (*COMPLETIONS, *COMPLETIONS)]
        assert [column(one.result()) for one in pending] == [[1.0], [None], [1.0]] * 2


def test_an_awaited_call_that_blocks_its_process_costs_no_other_call(context):
    with RewardRunner([entry("blocks_for_bad", timeout=1.0)], context, workers=1) as runner:
        runner.submit(COMPLETIONS[:1]).result()
        pending = [runner.submit([one]) for one in COMPLETIONS]
        assert [column(one.result()) for one in pending] == [[1.0], [None], [1.0]]


def test_what_a_process_says_is_not_believed(context):
    with RewardRunner([entry("forges")], context, workers=1) as runner:
        for one in COMPLETIONS:
            scored = runner.submit([one]).result()
            assert scored.values == ((None,),)
            assert scored.messages == {"some_rewards.forges": "its process sent what are no scores, and was killed"}


TRAINER = """
import sys, time
from pathlib import Path
from truing.config import RewardEntry
from truing.context import OpenContext
from truing.rewards import FunctionReward
from truing.rewards import local
from truing.rewards.runner import RewardRunner
from truing.rollout import Completion

folder, run_dir = map(Path, sys.argv[1:])
entries = [RewardEntry(reward=FunctionReward(name=f"some_rewards.{name}", base_dir=folder)) for name in ("hang", "length")]
one = Completion(request_id="r", index=0, prompt_ids=(1,), token_ids=(1,), finish_reason="stop", text="a")
with RewardRunner(entries, OpenContext(tokenizer=None, device=None, run_dir=run_dir, seed=0), workers=2) as runner:
    pending = [runner.submit([one]) for _ in range(2)]
    print("ready", flush=True)
    pending[0].result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_run(number, tmp_path):
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(FOLDER), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # a shell that started these tests in the background has them ignore it, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with trainer:
        assert trainer.stdout.readline() == b"ready\n"
        wait_until(lambda: len(workers_of(trainer.pid)) == 2)
        workers = workers_of(trainer.pid)
        trainer.send_signal(number)
        assert trainer.wait(20) != 0
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_how_many_processes_there_are(context):
    with RewardRunner([entry("slow")], context, workers=2) as runner:
        assert len(workers_of(os.getpid())) == 1
        [pending.result() for pending in [runner.submit(COMPLETIONS[:1]) for _ in range(4)]]
        assert len(workers_of(os.getpid())) == 2
    assert not workers_of(os.getpid())
    assert 1 <= RewardRunner([], context).workers <= 4
    assert runner.log == context.run_dir / "rewards.log"
