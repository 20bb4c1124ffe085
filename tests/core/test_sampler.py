"""Prompts to groups of scored completions: what a backend and rewards may do, and what is said when they do otherwise."""

from __future__ import annotations

import math

import attrs
import pytest

from truing import Completion, PluginError
from truing.data.tree import PromptTree
from truing.rewards.runner import Scored
from truing.rollout import Sampling
from truing.rollout.sampler import Sampler, weighted_sum


class Prompts(list):
    def prompt(self, index):
        return f"prompt {index}"


PROMPTS = Prompts(
    PromptTree(prompt_ids=(number, 7), branches=(), sample_id=number, columns={"answer": number}) for number in range(4)
)


def completion(request, index, fields):
    made = Completion(
        request_id=request.id,
        index=index,
        prompt_ids=request.prompt_ids,
        token_ids=(request.seeds[index] % 5,),
        finish_reason="stop",
    )
    return attrs.evolve(made, **fields)


class Backend:
    """Answers in reverse; `change` makes a fault."""

    def __init__(self, change=lambda request, index: {}):
        self.change, self.asked = change, []

    def generate(self, requests):
        self.asked.append([request.id for request in requests])
        for request in reversed(requests):
            for index in reversed(range(request.n)):
                yield completion(request, index, self.change(request, index))


class Rewards:
    """Scores a completion by its token; fails where `fails` says so."""

    def __init__(self, fails=lambda completion: False, score=lambda completion: float(completion.token_ids[0])):
        self.fails, self.score, self.seen = fails, score, []

    def submit(self, completions):
        self.seen += completions
        failed = tuple(map(self.fails, completions))
        values = tuple((None if bad else self.score(one),) for one, bad in zip(completions, failed, strict=True))
        return type("Pending", (), {"result": lambda _: Scored(values, failed, {}, {})})()


def sampler(backend=None, rewards=None, **fields):
    tokenizer = type("T", (), {"decode": lambda self, ids, **options: f"text {list(ids)}"})()
    made = {"live": backend or Backend(), "backend": "fake", "rewards": rewards or Rewards(), "weights": (1.0,), "seed": 1}
    return Sampler(**made, tokenizer=tokenizer, sampling=Sampling(max_completion_length=3), **fields)


def test_groups_come_in_the_order_of_the_prompts_with_what_rewards_need():
    rewards = Rewards()
    groups, anew = sampler(rewards=rewards).sample(PROMPTS, [2, 0], 3, "lot")
    assert [group.sample_id for group in groups] == [2, 0] and anew == 0
    assert [one.index for group in groups for one in group.completions] == [0, 1, 2, 0, 1, 2]
    assert {(one.prompt, one.columns["answer"]) for one in rewards.seen} == {("prompt 0", 0), ("prompt 2", 2)}
    assert all(one.text == f"text {list(one.token_ids)}" for one in rewards.seen)
    assert [row for group in groups for row in group.rewards] == [
        (float(one.token_ids[0]),) for g in groups for one in g.completions
    ]


def test_seeds_depend_on_run_lot_prompt_and_sample_and_on_nothing_else():
    def drawn(seed, samples, lot):
        groups, _ = attrs.evolve(sampler(), seed=seed).sample(PROMPTS, samples, 20, lot)
        return {group.sample_id: [one.token_ids for one in group.completions] for group in groups}

    both = drawn(1, [0, 1], "a")
    assert drawn(1, [1], "a")[1] == both[1] != both[0]
    assert drawn(2, [1], "a")[1] != both[1] != drawn(1, [1], "b")[1]


def test_what_failed_is_lost_and_counted():
    groups, _ = sampler(
        Backend(lambda request, index: {"finish_reason": "error"} if index == 0 else {}), Rewards(fails=lambda one: one.index == 1)
    ).sample(PROMPTS, [0], 4, "lot")
    assert ([one.index for one in groups[0].completions], groups[0].lost) == ([2, 3], 2)


def test_equal_rewards_are_sampled_anew_until_the_tries_are_used_up():
    backend = Backend()
    flat = Rewards(score=lambda one: 1.0)
    groups, anew = sampler(backend, flat).sample(PROMPTS, [0, 1], 3, "lot", resamplings=2)
    assert (anew, len(backend.asked), len(groups)) == (4, 3, 2)
    assert len({tuple(asked) for asked in backend.asked}) == 3, "each attempt has seeds of its own"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda request, index: {"request_id": "other"}, "answers 'other'.* which was not asked"),
        (lambda request, index: {"index": 9}, "which was not asked"),
        (lambda request, index: {"index": 0}, r"answers 'lot.0.0'\[0\] twice"),
        (lambda request, index: {"finish_reason": "error", "index": 5}, "which was not asked"),
        (lambda request, index: {"prompt_ids": (1,)}, "gives other prompt tokens"),
        (lambda request, index: {"token_ids": ()}, "a completion of 0 tokens, and it must have 1 to 3"),
        (lambda request, index: {"token_ids": (1, 2, 3, 4)}, "a completion of 4 tokens"),
        (lambda request, index: {"token_logps": (0.0, 0.0)}, "gives 2 token_logps for 1 tokens"),
        (lambda request, index: {"loss_mask": ()}, "gives 0 loss_mask for 1 tokens"),
        (lambda request, index: {"loss_mask": (False,)}, "gives a completion of which no token is counted"),
    ],
)
def test_a_backend_that_does_not_answer_as_it_is_asked_is_named(change, message):
    with pytest.raises(PluginError, match=f"rollout 'fake' .*{message}"):
        sampler(Backend(change)).sample(PROMPTS, [0], 2, "lot")


def test_rewards_that_do_not_apply_add_nothing():
    assert weighted_sum((1.0, math.nan, 2.0), (1.0, 5.0, 0.5)) == 2.0
    assert math.isnan(weighted_sum((math.nan,), (1.0,)))


def test_a_backend_that_leaves_some_out_is_named():
    class Lazy(Backend):
        def generate(self, requests):
            return list(super().generate(requests))[1:]

    with pytest.raises(PluginError, match="rollout 'fake' gave 1 of 2 completions for a prompt"):
        sampler(Lazy()).sample(PROMPTS, [0], 2, "lot")
