from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import psutil
import pytest

from tests.core import misbehaviour
from truing.config import RewardEntry
from truing.context import OpenContext
from truing.errors import ConfigError, DataError, TruingError
from truing.rewards import DefaultReward, FunctionReward, as_reward, reward_registry
from truing.rewards.runner import RewardRunner
from truing.rewards.sources import source_of
from truing.testing import LetterReward, fake_completions

FUNCTIONS = """
import asyncio, os, random, sys, time

def length(completions):
    return [float(len(text)) for text in completions]

def process(completions):
    return [float(os.getpid())] * len(completions)

def torch_is_imported(completions):
    return [float("torch" in sys.modules)] * len(completions)

def drawn(completions):
    return [random.random() for _ in completions]

def read_input(completions):
    return [float(len(sys.stdin.read()))] * len(completions)

def some(completions):
    return [None if text == "a" else 1.0 for text in completions]

def slow(completions):
    time.sleep(0.5)
    return [1.0] * len(completions)

def hang(completions):
    time.sleep(1000)

def raises(completions):
    raise ValueError("always")

def raises_for_bad(completions):
    if "bad" in completions:
        raise ValueError("bad")
    return [float(len(completions))] * len(completions)

def rank(completions):
    if "bad" in completions:
        raise ValueError("bad")
    return [float(len(completions))] * len(completions)

rank.compares = True

def types(completions, **columns):
    return [float(repr(columns) == "{'at': [datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)], "
        "'few': [[1, 2]], 'number': [3], 'raw': [b'x']}")]

together = 0

async def awaited(prompt, response):
    global together
    together += 1
    await asyncio.sleep(0.3)
    return float(together)

async def exits_for_bad(completions):
    await asyncio.sleep(0.3)
    if "bad" in completions:
        os._exit(1)
    return [1.0] * len(completions)
"""


@pytest.fixture
def context(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return OpenContext(tokenizer=None, device=None, run_dir=tmp_path, seed=7)


@pytest.fixture
def entry(tmp_path):
    def make(name, **settings):
        return RewardEntry(reward=FunctionReward(name=f"mine.{name}", base_dir=tmp_path), **settings)

    return make


def function_entry(function, **settings):
    return RewardEntry(reward=as_reward(function), **settings)


def column(scored, place=0):
    return [row[place] for row in scored.values]


COMPLETIONS = fake_completions(["a", "bad", "cc"])


def test_named_functions_and_classes_run_in_other_processes_and_functions_that_were_handed_over_here(context, entry):
    def here(completions):
        return [float(os.getpid())] * len(completions)

    entries = [entry("process"), entry("length"), RewardEntry(reward=LetterReward(letter="c")), function_entry(here)]
    with RewardRunner(entries, context) as runner:
        scored = runner.submit(COMPLETIONS).result()
    assert column(scored, 0)[0] != os.getpid() == column(scored, 3)[0]
    assert column(scored, 1) == [1.0, 3.0, 2.0] and column(scored, 2) == [0.0, 0.0, 1.0]
    assert runner.names == ("mine.process", "mine.length", "fake_letter", "here")
    assert scored.failed == (False,) * 3 and not scored.errors


def registered(completions):
    return [float(os.getpid())] * len(completions)


def test_what_a_worker_can_find_again(monkeypatch, tmp_path):
    monkeypatch.setattr(reward_registry, "_rewards", {})
    reward_registry.register("importable")(registered)
    reward_registry.register("local")(lambda completions: [])
    assert source_of(as_reward("importable")).load()(COMPLETIONS) == [float(os.getpid())] * 3
    assert source_of(as_reward("local")) is None
    assert source_of(as_reward(registered)) is None, "it was handed over, and runs here"
    letter = source_of(LetterReward(letter="c"))
    assert letter.load() == LetterReward(letter="c")

    @attrs.frozen(kw_only=True)
    class Local:
        name: ClassVar[str] = "local"

        def __call__(self, completions):
            return [0.0] * len(completions)

    assert source_of(Local()) is None


def test_a_worker_imports_no_torch_and_has_no_input(context, entry):
    with RewardRunner([entry("torch_is_imported"), entry("read_input")], context) as runner:
        assert runner.submit(COMPLETIONS[:1]).result().values == ((0.0, 0.0),)


def test_columns_keep_their_types(context, entry):
    columns = {
        "raw": b"x",
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "few": np.array([1, 2]),
        "number": np.int64(3),
    }
    with RewardRunner([entry("types")], context) as runner:
        assert column(runner.submit([attrs.evolve(COMPLETIONS[0], columns=columns)]).result()) == [1.0]
        with pytest.raises(DataError, match="a column that cannot be sent to a reward's process .it holds a object.; drop it"):
            runner.submit([attrs.evolve(COMPLETIONS[0], columns={"image": object()})]).result()


def test_random_rewards_repeat_themselves_whatever_was_called_before(context, entry):
    with RewardRunner([entry("drawn")], context, workers=1) as runner:
        first = [runner.submit([one]).result().values for one in COMPLETIONS]
    with RewardRunner([entry("drawn")], context, workers=1) as runner:
        again = [runner.submit([one]).result().values for one in reversed(COMPLETIONS)]
    assert first == again[::-1] and len(set(first)) == 3


def test_none_is_no_failure(context, entry):
    with RewardRunner([entry("some")], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
        assert column(scored) == [None, 1.0, 1.0] and scored.failed == (False,) * 3
        assert runner.end_batch() == {"rewards/mine.some/error_rate": 0.0}


def test_what_a_failure_does(context, entry):
    masked = entry("raises_for_bad")
    with RewardRunner([masked, entry("length")], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
    assert scored.values == ((1.0, 1.0), (None, 3.0), (1.0, 2.0)) and scored.failed == (False, True, False)
    with RewardRunner([attrs.evolve(masked, on_error=-2.0)], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
    assert column(scored) == [1.0, -2.0, 1.0] and scored.failed == (False,) * 3
    assert scored.errors == {"mine.raises_for_bad": 1} and "ValueError: bad" in scored.messages["mine.raises_for_bad"]
    with (
        RewardRunner([attrs.evolve(masked, on_error="fail")], context) as runner,
        pytest.raises(
            TruingError, match=r"'mine.raises_for_bad' failed on sample 0 of r1: ValueError: bad \(\S+mine.py:\d+\)\. \S+"
        ),
    ):
        runner.submit(COMPLETIONS).result()


def test_the_run_ends_above_the_error_rate(context, entry):
    entries = [entry("raises_for_bad", max_error_rate=0.3, on_error=0.0), entry("length")]
    with RewardRunner(entries, context) as runner:
        runner.submit(COMPLETIONS).result()
        later = runner.submit(COMPLETIONS[:1])
        with pytest.raises(TruingError, match=r"'mine.raises_for_bad' has no score for 1 of 3 samples.*0.3.*ValueError: bad"):
            runner.end_batch()
        later.result()
        assert runner.end_batch() == {"rewards/mine.raises_for_bad/error_rate": 0.0, "rewards/mine.length/error_rate": 0.0}
        pending = runner.submit(COMPLETIONS)
        pending.result()
        pending.result()
        seen = []
        rates = runner.end_batch(lambda counts: seen.append(list(counts)) or [10, 1, 2])
        assert seen == [[3, 1, 0]] and list(rates.values()) == [0.1, 0.2]


def test_a_reward_that_compares_is_not_called_one_by_one(context, entry):
    with RewardRunner([entry("rank"), entry("raises_for_bad")], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
        assert scored.values == ((None, 1.0), (None, None), (None, 1.0))
        assert column(runner.submit([COMPLETIONS[0]] * 2).result()) == [2.0, 2.0]


def test_a_reward_that_always_fails_is_not_called_for_every_completion(context, entry, tmp_path):
    with RewardRunner([entry("raises")], context) as runner:
        scored = runner.submit(COMPLETIONS * 4).result()
    assert scored.failed == (True,) * 12 and scored.errors == {"mine.raises": 12}
    assert (tmp_path / "rewards.log").read_text().count("ValueError: always") == 1 + 3


def test_submitting_does_not_wait_and_calls_run_beside_each_other(context, entry):
    with RewardRunner([entry("slow"), entry("slow")], context, workers=4) as runner:
        [pending.result() for pending in [runner.submit(COMPLETIONS) for _ in range(2)]]  # all processes are there now
        begun = time.monotonic()
        pending = [runner.submit(COMPLETIONS) for _ in range(2)]
        assert time.monotonic() - begun < 0.25 and not pending[0].done()
        assert pending[0].result().values == pending[1].result().values == ((1.0, 1.0),) * 3
        assert time.monotonic() - begun < 1.4, "four calls of half a second, by four processes"


def test_the_deadline_of_a_call_begins_with_it_and_not_with_its_wait(context, entry):
    with RewardRunner([entry("slow", timeout=2.0)], context, workers=1) as runner:
        pending = [runner.submit(COMPLETIONS[:1]) for _ in range(6)]
        assert [column(one.result()) for one in pending] == [[1.0]] * 6


def test_awaited_rewards_are_awaited_together_in_one_process(context, entry):
    with RewardRunner([entry("awaited")], context, workers=1) as runner:
        runner.submit(COMPLETIONS).result()
        begun = time.monotonic()
        pending = [runner.submit(COMPLETIONS) for _ in range(20)]
        counts = [max(column(one.result())) for one in pending]
        assert time.monotonic() - begun < 20 * 0.3 / 2
    assert max(counts) > 30


def test_an_awaited_call_that_ends_its_process_costs_no_other_call(context, entry):
    with RewardRunner([entry("exits_for_bad")], context, workers=1) as runner:
        runner.submit(COMPLETIONS[:1]).result()
        pending = [runner.submit([one]) for one in (*COMPLETIONS, *COMPLETIONS)]
        assert [column(one.result()) for one in pending] == [[1.0], [None], [1.0]] * 2


def test_what_cannot_be_loaded_stops_the_start(context, entry, tmp_path):
    (tmp_path / "broken.py").write_text("import os\nprint('hello')\ndef f(completions): return []\nos._exit(4)\n")
    with pytest.raises(ConfigError, match="rewards: mine.absent: .*mine.py defines no function 'absent'"):
        RewardRunner([entry("length"), entry("absent")], context).__enter__()
    broken = RewardEntry(reward=FunctionReward(name="broken.f", base_dir=tmp_path))
    with pytest.raises(ConfigError, match=r"broken.f: cannot be loaded: its process ended itself with exit code 4; \S+rewards.log"):
        RewardRunner([broken], context).__enter__()
    assert not workers_of(os.getpid())


def workers_of(pid):
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("truing.rewards.worker" in part for part in process.cmdline()):
                found.append(process)
    return found


TRAINER = """
import sys, time
from pathlib import Path
from truing.config import RewardEntry
from truing.context import OpenContext
from truing.rewards import FunctionReward
from truing.rewards.runner import RewardRunner
from truing.rollout import Completion

folder = Path(sys.argv[1])
entries = [RewardEntry(reward=FunctionReward(name=f"mine.{name}", base_dir=folder)) for name in ("hang", "length")]
one = Completion(request_id="r", index=0, prompt_ids=(1,), token_ids=(1,), finish_reason="stop", text="a")
with RewardRunner(entries, OpenContext(tokenizer=None, device=None, run_dir=folder, seed=0), workers=2) as runner:
    pending = [runner.submit([one]) for _ in range(2)]
    print("ready", flush=True)
    pending[0].result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_run(number, context, tmp_path):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
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


def test_functions_of_this_process_fail_as_those_of_others_do(context):
    names = ("raises", "exits", "nothing", "hangs", "mutates", "async_raises", "async_text", "async_hangs", "async_exits", "blocks")
    entries = [
        RewardEntry(reward=as_reward(getattr(misbehaviour, name), name=name), timeout=0.5 if name in ("hangs", "blocks") else 60.0)
        for name in names
    ]
    entries[7] = attrs.evolve(entries[7], timeout=0.5)
    completions = [attrs.evolve(one, columns={"answer": ["3"]}) for one in COMPLETIONS]
    with RewardRunner(entries, context) as runner:
        scored = runner.submit(completions).result()
        again = runner.submit(completions[:1]).result()
    right, one, none = [1.0] * 3, [1.0, None, 1.0], [None] * 3
    found = {name: column(scored, place) for place, name in enumerate(names)}
    assert found == dict(zip(names, (one, one, none, one, right, one, none, one, one, none), strict=True))
    assert "ValueError: no such answer" in scored.messages["raises"] and "SystemExit: 0" in scored.messages["exits"]
    assert scored.messages["hangs"] == scored.messages["async_hangs"] == "not answered within 0.5 s"
    assert all(one.columns == {"answer": ["3"]} for one in completions)
    assert again.values == ((1.0, 1.0, None, 1.0, 1.0, 1.0, None, 1.0, 1.0, None),), "what hung before holds up nobody"


@attrs.frozen(kw_only=True)
class Opened:
    name: ClassVar[str] = "opened"
    log: list

    @contextlib.contextmanager
    def open(self, context):
        self.log.append(f"opened in {threading.current_thread().name} with seed {context.seed}")
        try:
            yield self.score
        finally:
            self.log.append("closed")

    def score(self, completions):
        return [float(len(completions))] * len(completions)


def test_an_opened_reward_is_opened_once_and_closed_whatever_happens(context, entry):
    log = []
    with RewardRunner([RewardEntry(reward=Opened(log=log))], context) as runner:
        assert [column(runner.submit(COMPLETIONS).result()) for _ in range(2)] == [[3.0] * 3] * 2
    assert log == ["opened in MainThread with seed 7", "closed"]
    log.clear()
    with pytest.raises(KeyboardInterrupt), RewardRunner([RewardEntry(reward=Opened(log=log))], context):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError):
        RewardRunner([RewardEntry(reward=Opened(log=log)), RewardEntry(reward=Unopenable())], context).__enter__()
    assert log[1::2] == ["closed", "closed"]


@attrs.frozen(kw_only=True)
class Unopenable:
    name: ClassVar[str] = "unopenable"

    def open(self, context):
        return contextlib.nullcontext(1 / 0)


def test_the_default_needs_no_process_and_names_are_told_apart(context):
    entries = [RewardEntry(reward=DefaultReward()), RewardEntry(reward=DefaultReward()), function_entry(registered)]
    with RewardRunner(entries, context) as runner:
        assert not workers_of(os.getpid())
        assert runner.submit(COMPLETIONS).result().values[0][:2] == (0.0, 0.0)
        assert runner.submit([]).result().values == ()
    assert runner.names == ("default", "default-2", "registered")


def test_how_many_processes_there_are(context, entry):
    with RewardRunner([entry("slow")], context, workers=2) as runner:
        assert len(workers_of(os.getpid())) == 1
        [pending.result() for pending in [runner.submit(COMPLETIONS[:1]) for _ in range(4)]]
        assert len(workers_of(os.getpid())) == 2
    assert not workers_of(os.getpid())
    assert 1 <= RewardRunner([], context).workers <= 4
    assert Path(runner.log) == context.run_dir / "rewards.log"
