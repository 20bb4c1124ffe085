"""check_reward passes rewards that keep their promises, and names the promise that a reward breaks."""

from __future__ import annotations

import contextlib
import itertools
from typing import ClassVar

import attrs
import pytest

from truing.rewards import Reward
from truing.testing import LetterReward, check_reward, fake_completions


def texts(completions):
    return [completion.text for completion in completions]


def reward(call, **members):
    """A reward class that is called with the completions."""
    body = {
        "__module__": __name__,
        "__annotations__": {},
        "name": "bad",
        "__call__": lambda self, completions: call(completions),
        **members,
    }
    return attrs.frozen(kw_only=True)(type("Bad", (Reward,), body))


def breaks(candidate, message, *given, **options):
    with pytest.raises(AssertionError, match=message):
        check_reward(candidate, *given, **options)


@attrs.frozen(kw_only=True)
class Live:
    """A reward that must be opened."""

    name: ClassVar[str] = "live"
    fails: bool = False

    @contextlib.contextmanager
    def open(self, context):
        lengths = {"eos": len(context.tokenizer.eos_token)}
        yield lambda completions: [
            None if self.fails and not completion.text else float(lengths["eos"]) for completion in completions
        ]
        lengths.clear()


@pytest.mark.parametrize("candidate", [LetterReward, LetterReward(letter="o"), Live, Live(fails=True)])
def test_good_rewards_pass(candidate):
    check_reward(candidate)


def test_plain_and_async_functions_pass():
    async def length(prompt, response):
        return float(len(response))

    def answered(completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    check_reward(length)
    check_reward(answered, [attrs.evolve(one, columns={"answer": "12"}) for one in fake_completions()])


def test_a_class_that_the_registry_refuses():
    breaks(reward(lambda completions: [], name="Not Allowed"), "the registry would refuse this plugin")


def test_no_completion_to_check_with():
    breaks(LetterReward, "needs at least one completion", [])


def test_nonsense_results():
    breaks(reward(lambda completions: [0.0]), "reward 'bad' returned 1 scores for 5 completions")
    breaks(reward(lambda completions: texts(completions)), "reward 'bad' returned str '' for completion 0")
    breaks(reward(lambda completions: [float("nan")] * len(completions)), "reward 'bad' returned nan for completion 0")


def test_a_reward_that_fails():
    breaks(reward(lambda completions: [1 / len(text) for text in texts(completions)]), "reward 'bad' failed. ZeroDivisionError")


def test_a_call_with_no_completion():
    breaks(
        reward(lambda completions: [max(map(len, texts(completions))) * 1.0] * len(completions)),
        "failed; a call with no completion must return an empty list. ValueError",
    )


def test_scores_that_do_not_repeat_themselves():
    counter = itertools.count()
    breaks(reward(lambda completions: [float(next(counter)) for _ in completions]), "gives other scores for the same completions")


def test_scores_that_depend_on_the_order_or_the_company():
    ordered = reward(lambda completions: [float(index) for index, _ in enumerate(completions)])
    breaks(ordered, "other scores when the completions come in another order; .* Pass order_matters=True")
    check_reward(ordered, order_matters=True)
    relative = reward(lambda completions: [len(text) / (1 + max(map(len, texts(completions)))) for text in texts(completions)])
    breaks(relative, "gives completion 1 another score when it comes alone")
    check_reward(relative, order_matters=True)


def test_last_digits_may_depend_on_what_is_computed_together():
    computed = reward(lambda completions: [None if not text else 1 + 1e-7 * len(completions) for text in texts(completions)])
    breaks(computed, "gives completion 1 another score when it comes alone")
    check_reward(computed, tolerance=1e-5)
    breaks(computed, "gives completion 1 another score when it comes alone", tolerance=1e-8)
