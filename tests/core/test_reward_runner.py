"""What a run gets from its rewards: scores, failures, error rates."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import pytest

from tests.core import misbehaviour
from tests.core.reward_calls import COMPLETIONS, column, entry, run_context, workers_of
from truing import threads
from truing.config import RewardEntry
from truing.errors import ConfigError, DataError, PluginError, TruingError
from truing.rewards import DefaultReward, FunctionReward, as_reward, reward_registry
from truing.rewards.runner import RewardRunner
from truing.rewards.sources import source_of


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path)


def function_entry(function, **settings):
    return RewardEntry(reward=as_reward(function), **settings)


def test_named_functions_and_classes_run_in_other_processes_and_functions_that_were_handed_over_here(context):
    def here(completions):
        return [float(os.getpid())] * len(completions)

    entries = [entry("process"), entry("length"), RewardEntry(reward=misbehaviour.Behaves(letter="c")), function_entry(here)]
    with RewardRunner(entries, context) as runner:
        scored = runner.submit(COMPLETIONS).result()
    assert column(scored, 0)[0] != os.getpid() == column(scored, 3)[0]
    assert column(scored, 1) == [1.0, 3.0, 2.0] and column(scored, 2) == [0.0, 0.0, 1.0]
    assert runner.names == ("some_rewards.process", "some_rewards.length", "behaves", "here")
    assert scored.failed == (False,) * 3 and not scored.errors


def registered(completions):
    return [float(os.getpid())] * len(completions)


def test_what_a_worker_can_find_again(monkeypatch):
    monkeypatch.setattr(reward_registry, "_rewards", {})
    reward_registry.register("importable")(registered)
    reward_registry.register("local")(lambda completions: [])
    assert source_of(as_reward("importable")).load()(COMPLETIONS) == [float(os.getpid())] * 3
    assert source_of(as_reward("local")) is None
    assert source_of(as_reward(registered)) is None, "it was handed over, and runs here"
    letter = source_of(misbehaviour.Behaves(letter="c"))
    assert letter.load() == misbehaviour.Behaves(letter="c")

    @attrs.frozen(kw_only=True)
    class Local:
        name: ClassVar[str] = "local"

        def __call__(self, completions):
            return [0.0] * len(completions)

    assert source_of(Local()) is None


def test_a_worker_imports_no_torch_and_has_no_input(context):
    with RewardRunner([entry("torch_is_imported"), entry("read_input")], context) as runner:
        assert runner.submit(COMPLETIONS[:1]).result().values == ((0.0, 0.0),)


def test_columns_keep_their_types(context):
    columns = {
        "raw": b"x",
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "few": np.array([1, 2]),
        "number": np.int64(3),
    }
    with RewardRunner([entry("types")], context) as runner:
        assert column(runner.submit([attrs.evolve(COMPLETIONS[0], columns=columns)]).result()) == [1.0]
        for value, why in ((object(), "it holds a object"), (2**70, "can't serialize ints"), ("\ud800", "surrogates not allowed")):
            with pytest.raises(DataError, match=f"column 'image' of a row cannot be sent to a reward's process .*{why}.*; drop it"):
                runner.submit([attrs.evolve(COMPLETIONS[0], columns={"number": 3, "image": value})]).result()


def test_random_rewards_repeat_themselves_whatever_was_called_before(context):
    with RewardRunner([entry("drawn")], context, workers=1) as runner:
        first = [runner.submit([one]).result().values for one in COMPLETIONS]
    with RewardRunner([entry("drawn")], context, workers=1) as runner:
        again = [runner.submit([one]).result().values for one in reversed(COMPLETIONS)]
    assert first == again[::-1] and len(set(first)) == 3


def test_none_is_no_failure(context):
    with RewardRunner([entry("some")], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
        assert column(scored) == [None, 1.0, 1.0] and scored.failed == (False,) * 3
        assert runner.end_batch() == {"rewards/some_rewards.some/error_rate": 0.0}


def test_what_a_failure_does(context):
    masked = entry("raises_for_bad")
    with RewardRunner([masked, entry("length")], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
    assert scored.values == ((1.0, 1.0), (None, 3.0), (1.0, 2.0)) and scored.failed == (False, True, False) and scored.made_up == 0
    with RewardRunner([attrs.evolve(masked, on_error=-2.0)], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
    assert column(scored) == [1.0, -2.0, 1.0] and scored.failed == (False,) * 3 and scored.made_up == 1
    assert (
        scored.errors == {"some_rewards.raises_for_bad": 1} and "ValueError: bad" in scored.messages["some_rewards.raises_for_bad"]
    )
    with (
        RewardRunner([attrs.evolve(masked, on_error="fail")], context) as runner,
        pytest.raises(
            TruingError,
            match=r"'some_rewards.raises_for_bad' failed on sample 0 of r1: ValueError: bad \(\S+some_rewards.py:\d+\)\. \S+",
        ),
    ):
        runner.submit(COMPLETIONS).result()


def test_the_run_ends_above_the_error_rate(context):
    entries = [entry("raises_for_bad", max_error_rate=0.3, on_error=0.0), entry("length")]
    with RewardRunner(entries, context) as runner:
        runner.submit(COMPLETIONS).result()
        later = runner.submit(COMPLETIONS[:1])
        with pytest.raises(
            TruingError, match=r"'some_rewards.raises_for_bad' has no score for 1 of 3 samples.*0.3.*ValueError: bad"
        ):
            runner.end_batch()
        later.result()
        assert runner.end_batch() == {
            "rewards/some_rewards.raises_for_bad/error_rate": 0.0,
            "rewards/some_rewards.length/error_rate": 0.0,
        }
        pending = runner.submit(COMPLETIONS)
        pending.result()
        pending.result()
        seen = []
        rates = runner.end_batch(lambda counts: seen.append(list(counts)) or [10, 1, 2])
        assert seen == [[3, 1, 0]] and list(rates.values()) == [0.1, 0.2]


def test_a_reward_that_compares_is_not_called_one_by_one(context):
    with RewardRunner([entry("rank"), entry("raises_for_bad")], context) as runner:
        scored = runner.submit(COMPLETIONS).result()
        assert scored.values == ((None, 1.0), (None, None), (None, 1.0))
        assert column(runner.submit([COMPLETIONS[0]] * 2).result()) == [2.0, 2.0]


def test_what_raises_for_many_costs_these_alone(context):
    with RewardRunner([entry("raises_for_bad")], context) as runner:
        scored = runner.submit(COMPLETIONS * 4).result()
    assert scored.failed == (False, True, False) * 4 and scored.errors == {"some_rewards.raises_for_bad": 4}


def test_a_reward_that_always_hangs_is_not_called_for_every_completion(context, tmp_path):
    with RewardRunner([entry("says_it_hangs", timeout=0.3)], context) as runner:
        scored = runner.submit(COMPLETIONS * 4).result()
    assert scored.failed == (True,) * 12 and scored.errors == {"some_rewards.says_it_hangs": 12}
    assert (tmp_path / "rewards.log").read_text().count("I hang") == 1 + 3


def test_parameters_that_an_entry_sets_reach_the_worker(context):
    function = FunctionReward(name="some_rewards.limited", base_dir=Path(__file__).parent, arguments={"limit": 2})
    with RewardRunner([RewardEntry(reward=function)], context) as runner:
        assert column(runner.submit(COMPLETIONS).result()) == [min(2.0, len(one.text)) for one in COMPLETIONS]


def test_what_cannot_be_loaded_stops_the_start(context, tmp_path):
    (tmp_path / "broken.py").write_text("import os\nprint('hello')\ndef f(completions): return []\nos._exit(4)\n")
    with pytest.raises(ConfigError, match="rewards: some_rewards.absent: .*some_rewards.py defines no function 'absent'"):
        RewardRunner([entry("length"), entry("absent")], context).__enter__()
    broken = RewardEntry(reward=FunctionReward(name="broken.f", base_dir=tmp_path))
    with pytest.raises(ConfigError, match=r"broken.f: cannot be loaded: its process ended itself with exit code 4; \S+rewards.log"):
        RewardRunner([broken], context).__enter__()
    assert not workers_of(os.getpid())


def test_functions_of_this_process_fail_as_those_of_others_do(context, monkeypatch):
    monkeypatch.setattr(threads, "ANSWER_SECONDS", 0.2)
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
    assert "reward 'exits': no score for 1 of 3 completions of r1: SystemExit: 0" in runner.log.read_text()
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


@attrs.frozen(kw_only=True)
class Comparing(Opened):
    name: ClassVar[str] = "comparing"
    compares: ClassVar[bool] = True

    def score(self, completions):
        if len(completions) > 1:
            raise ValueError("several")
        return [1.0]


def test_an_opened_reward_that_compares_is_not_called_one_by_one(context):
    reward = Opened(log=[])
    with RewardRunner([RewardEntry(reward=Comparing(log=[])), RewardEntry(reward=reward)], context) as runner:
        assert runner.submit(COMPLETIONS).result().values == ((None, 3.0),) * 3


def test_an_opened_reward_is_opened_once_and_closed_whatever_happens(context):
    log = []
    with RewardRunner([RewardEntry(reward=Opened(log=log))], context) as runner:
        assert [column(runner.submit(COMPLETIONS).result()) for _ in range(2)] == [[3.0] * 3] * 2
    assert log == ["opened in MainThread with seed 7", "closed"]
    log.clear()
    with pytest.raises(KeyboardInterrupt), RewardRunner([RewardEntry(reward=Opened(log=log))], context):
        raise KeyboardInterrupt
    message = r"^opening reward 'unopenable' failed: ZeroDivisionError: division by zero; mend its code \(--debug shows where\)$"
    with pytest.raises(PluginError, match=message):
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
