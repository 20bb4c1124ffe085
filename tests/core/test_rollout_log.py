"""What is measured of groups of completions: which of them count in what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from truing import Completion
from truing.config import RolloutConfig
from truing.rollout.sampler import Group
from truing.testing.fakes import FakeRollout
from truing.train.rollout_log import RolloutLog


def measured(groups):
    """The metrics of prompts by the rewards of their completions, of which three were asked for."""
    log = RolloutLog(None, None, None, ("letter",), (1.0,), lambda group: group.totals((1.0,)))
    one = Completion(request_id="r", index=0, prompt_ids=(1,), token_ids=(2, 3), finish_reason="stop")
    return log.metrics(
        [
            Group(sample_id=place, completions=(one,) * len(rewards), rewards=tuple((it,) for it in rewards), lost=3 - len(rewards))
            for place, rewards in enumerate(groups)
        ]
    )


def test_prompts_with_fewer_than_two_scores_are_in_no_comparison():
    """Of 1 and 3 the standard deviation is the root of 2, of 5 and 5 it is 0; the mean reward is (1 + 3 + 5 + 5 + 6) / 5."""
    found = measured([(1.0, 3.0), (5.0, 5.0), (6.0,), ()])
    assert found["reward_std"] == pytest.approx(2**0.5 / 2) and found["frac_reward_zero_std"] == 0.5
    assert found["reward"] == 4 and found["completions/lost"] == 1 + 1 + 2 + 3


def test_completions_that_differ_by_rounding_alone_are_worth_the_same():
    """0.1 + 0.2 is 0.3 and a rounding error."""
    assert measured([(0.1 + 0.2, 0.3), (0.3, 0.3001)])["frac_reward_zero_std"] == 0.5


def test_one_completion_of_each_prompt_has_no_spread():
    found = measured([(1.0,), (2.0,)])
    assert found["reward"] == 1.5 and not {"reward_std", "frac_reward_zero_std"} & found.keys()


@attrs.define
class Run:
    """As much of a run as the log looks at; `tables` are the steps of which samples were shown."""

    total_steps: int
    config: Any
    loss: Any
    state: Any = attrs.field(factory=lambda: SimpleNamespace(step=0))
    tables: list[int] = attrs.field(factory=list)
    accelerator: Any = SimpleNamespace(is_main_process=True)
    run_dir: Any = SimpleNamespace(append_completions=lambda lines: None)

    @property
    def reporter(self):
        return SimpleNamespace(table=lambda title, columns, rows: self.tables.append(int(title.removeprefix("samples of step "))))


def tables(total_steps, *, updates=1, table_steps=None, **settings):
    """The steps of which a run shows samples, that takes so many steps on a rollout batch."""
    rollout = RolloutConfig(backend=FakeRollout(), table_steps=table_steps)
    run = Run(total_steps, SimpleNamespace(rollout=rollout), SimpleNamespace(**settings))
    plan = SimpleNamespace(updates=updates, num_generations=1)
    log = RolloutLog(run, SimpleNamespace(prompt=str), plan, ("letter",), (1.0,), lambda group: group.totals((1.0,)))
    one = Completion(request_id="r", index=0, prompt_ids=(1,), token_ids=(2, 3), finish_reason="stop")
    for run.state.step in range(0, total_steps, updates):
        log.write([Group(sample_id=0, completions=(one,), rewards=((1.0,),), lost=0)], [0.0])
    return run.tables


@pytest.mark.parametrize("total", [10, 11, 19, 20, 21, 99, 100, 101])
@pytest.mark.parametrize("settings", [{}, {"num_sample_generations": 10}])
def test_a_run_shows_ten_tables_at_most_and_half_of_that_at_least(total, settings):
    shown = tables(total, **settings)
    assert shown[0] == 1 and 5 <= len(shown) <= 10


def test_tables_are_of_the_first_step_and_evenly_apart():
    assert tables(19) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert tables(100, num_sample_generations=4) == [1, 26, 51, 76]
    assert tables(3) == [1, 2, 3], "as many as there are steps, where these are fewer"
    # 16 steps in rollout batches of 4: every second step is wanted, and a batch has one table
    assert tables(16, updates=4) == [1, 5, 9, 13]


def test_table_steps_comes_first():
    """Every third step from the first, 4, 7 and 10; where a rollout batch is of two steps, the first that begins at or after it."""
    for settings in ({}, {"num_sample_generations": 0}, {"num_sample_generations": 2}):
        assert tables(10, table_steps=3, **settings) == [1, 4, 7, 10]
    assert tables(12, table_steps=3, updates=2) == [1, 5, 7, 11]


def test_a_method_may_want_no_tables():
    assert tables(50, num_sample_generations=0) == []
