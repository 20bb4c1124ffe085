"""What is measured of groups of completions: which of them count in what."""

from __future__ import annotations

import pytest

from truing import Completion
from truing.rollout.sampler import Group
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
