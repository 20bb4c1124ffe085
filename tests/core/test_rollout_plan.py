"""How many completions a run samples, and how many steps it takes on them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from truing import ConfigError, Layout
from truing.config import RolloutConfig
from truing.rollout.plan import plan_of
from truing.testing.fakes import FakeRollout


def plan(per_step=4, *, rollout=None, **method):
    settings = RolloutConfig(backend=FakeRollout(), **(rollout or {}))
    made = SimpleNamespace(**{"name": "m", "layout": Layout.ROLLOUT, **method})
    return plan_of(SimpleNamespace(method=made, rollout=settings), per_step)


def test_a_step_on_every_batch_unless_told_otherwise():
    found = plan()
    assert (found.prompts, found.num_generations, found.updates) == (4, 8, 1)
    assert found.sampling.max_completion_length == 256


def test_passes_and_parts_of_them():
    found = plan(num_iterations=3, num_minibatches=2)
    assert (found.prompts, found.minibatches, found.iterations, found.updates) == (8, 2, 3, 6)
    assert plan(rollout={"prompts_per_batch": 12}).minibatches == 3
    assert plan(rollout={"prompts_per_batch": 12}, num_minibatches=3).updates == 3


def test_what_the_method_is_used_to_gives_way_to_the_configuration():
    assert plan(default_num_generations=1).num_generations == 1
    assert plan(default_num_generations=1, rollout={"num_generations": 5}).num_generations == 5
    assert plan(max_completion_length=32).sampling.max_completion_length == 32
    assert plan(rollout={"num_eval_generations": 2}).num_eval_generations == 2


def test_a_method_on_collected_data_has_none():
    assert plan(layout=Layout.PAIRED) is None


@pytest.mark.parametrize(
    ("rollout", "method", "message"),
    [
        ({"prompts_per_batch": 6}, {}, "prompts_per_batch is 6, and a step has 4 prompts"),
        (
            {"prompts_per_batch": 8},
            {"num_minibatches": 3},
            r"^rollout.prompts_per_batch is 8, which is 2 steps of 4 prompts, and the method's own setting cuts a "
            r"pass into 3 steps; leave one of the two out$",
        ),
        ({"num_generations": 1}, {"least_generations": 2}, "num_generations is 1, and m compares the completions"),
        (
            {"max_completion_length": 8},
            {"max_completion_length": 9},
            "max_completion_length is 8 and method.max_completion_length 9",
        ),
        ({}, {"least_completion_length": 257}, "max_completion_length is 256, and m with these settings needs 257 or more"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(rollout, method, message):
    with pytest.raises(ConfigError, match=message):
        plan(rollout=rollout, **method)
