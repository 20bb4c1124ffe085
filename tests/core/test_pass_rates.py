"""The share of prompts of which one of so many completions passes: against the definition, and by hand."""

from __future__ import annotations

import math

import pytest

from truing import Completion
from truing.rollout.sampler import Group
from truing.train.rollouts import pass_rates

ONE = Completion(request_id="r", index=0, prompt_ids=(1,), token_ids=(2, 3), finish_reason="stop")


def group(rewards, count):
    """A prompt's completions with these rewards; the others of `count` are lost."""
    return Group(sample_id=0, completions=(ONE,) * len(rewards), rewards=tuple(rewards), lost=count - len(rewards))


@pytest.mark.parametrize("passing", range(6))
def test_it_is_the_unbiased_estimate(passing):
    """Of n = 5 completions c pass: pass@k is 1 - (n-c over k) / (n over k) (Chen et al. 2021, arXiv:2107.03374), k is 1 and n."""
    found = pass_rates([group([(1.0,)] * passing + [(0.0,)] * (5 - passing), 5)], (1.0,), 5, 1.0)
    of_k = {k: 1 - math.comb(5 - passing, k) / math.comb(5, k) for k in (1, 5)}
    assert found == pytest.approx({"pass@1": of_k[1], "pass@5": of_k[5]})


def test_what_is_lost_or_has_no_score_does_not_pass():
    """With the weights 1 and 1/2 the sums are 1, 1, 1/2, 0 of the first prompt, of which two pass; 0, 1 and none of the second, of
    which a fourth is lost and one passes; and of the third none does. So pass@1 is (2/4 + 1/4 + 0) / 3, and pass@4 is 2/3.
    """
    nan = math.nan
    groups = [
        group([(1.0, 0.0), (0.0, 2.0), (0.5, 0.0), (0.0, nan)], 4),
        group([(0.0, 0.0), (1.0, nan), (nan, nan)], 4),
        group([(0.0, 0.0), (0.5, 0.5), (0.9, 0.1), (-1.0, 0.0)], 4),
    ]
    assert pass_rates(groups, (1.0, 0.5), 4, 1.0) == pytest.approx({"pass@1": 1 / 4, "pass@4": 2 / 3})
    assert pass_rates(groups, (1.0, 0.5), 4, 0.9) == pytest.approx({"pass@1": 1 / 3, "pass@4": 1.0}), "0.9 + 0.1 / 2 passes now"


def test_of_prompts_that_are_all_lost_none_passes():
    assert pass_rates([group([], 2), group([(1.0,), (1.0,)], 2)], (1.0,), 2, 1.0) == {"pass@1": 0.5, "pass@2": 0.5}


def test_one_completion_of_each_prompt_has_one_rate():
    assert pass_rates([group([(1.0,)], 1), group([(0.0,)], 1)], (1.0,), 1, 1.0) == {"pass@1": 0.5}
