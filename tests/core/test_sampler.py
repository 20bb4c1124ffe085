"""Prompts to groups of scored completions: what a backend and rewards may do, and what is said when they do otherwise."""

from __future__ import annotations

import math
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import attrs
import pytest

from truing import Completion, Fork, PluginError, RolloutError, RolloutRequest, VersionSpan
from truing.data.tree import PromptTree
from truing.rewards.runner import Scored
from truing.rewards.wire import LENGTH_BYTES, Call, frame, read_question
from truing.rollout import EpisodeRecord, Sampling
from truing.rollout.grown import tree_of
from truing.rollout.sampler import STALE_TRIES, Group, Sampler, weighted_sum


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


class Server(Backend):
    """Answers when it is told to, on a thread of its own."""

    def __init__(self, change=lambda request, index: {}, at_once=True):
        super().__init__(change)
        self.begun = {}
        self.thread = ThreadPoolExecutor(1)
        self.go = Event()
        if at_once:
            self.go.set()

    def submit(self, request):
        self.begun[request.id] = self.thread.submit(lambda: self.go.wait(5) and tuple(self.generate([request])))
        return self.begun[request.id]


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
    made = {"live": backend or Backend(), "backend": "fake", "rewards": rewards or Rewards(), "seed": 1}
    made["worths"] = lambda group: group.totals((1.0,))
    return Sampler(**made, tokenizer=tokenizer, sampling=Sampling(max_completion_length=3), **fields)


def sample(sampler, samples, count, lot="lot", **options):
    return sampler.sample(sampler.ask(PROMPTS, samples, count, lot), **options)


def test_groups_come_in_the_order_of_the_prompts_with_what_rewards_need():
    rewards = Rewards()
    lot = sample(sampler(rewards=rewards), [2, 0], 3)
    groups = lot.groups
    assert [group.sample_id for group in groups] == [2, 0] and lot.resampled == lot.stale == 0
    assert [one.index for group in groups for one in group.completions] == [0, 1, 2, 0, 1, 2]
    assert {(one.prompt, one.columns["answer"]) for one in rewards.seen} == {("prompt 0", 0), ("prompt 2", 2)}
    assert all(one.text == f"text {list(one.token_ids)}" for one in rewards.seen)
    assert [row for group in groups for row in group.rewards] == [
        (float(one.token_ids[0]),) for g in groups for one in g.completions
    ]


def test_a_group_is_scored_while_the_next_is_generated_in_process():
    rewards, found = Rewards(), []

    class Looks(Backend):
        def generate(self, requests):
            for request in requests:
                found.append(Counter(one.request_id for one in rewards.seen))
                yield from super().generate([request])

    sample(sampler(Looks(), rewards), [2, 0, 3], 3)
    assert found == [{}, {"lot.0.2": 3}, {"lot.0.2": 3, "lot.0.0": 3}]


def test_seeds_depend_on_run_lot_prompt_and_sample_and_on_nothing_else():
    def drawn(seed, samples, lot):
        groups = sample(attrs.evolve(sampler(), seed=seed), samples, 20, lot).groups
        return {group.sample_id: [one.token_ids for one in group.completions] for group in groups}

    both = drawn(1, [0, 1], "a")
    assert drawn(1, [1], "a")[1] == both[1] != both[0]
    assert drawn(2, [1], "a")[1] != both[1] != drawn(1, [1], "b")[1]


def test_what_failed_is_lost_and_counted():
    backend = Backend(lambda request, index: {"finish_reason": "error"} if index == 0 else {})
    group = sample(sampler(backend, Rewards(fails=lambda one: one.index == 1)), [0], 4).groups[0]
    assert ([one.index for one in group.completions], group.lost) == ([2, 3], 2)


def test_what_backends_add_can_be_sent_to_rewards_whatever_a_policy_wrote():
    said = [{"role": "assistant", "content": "\ud83d", "tool_calls": [{"function": {"arguments": {"n": 10**22}}}]}]
    rewards = Rewards()
    sample(
        sampler(
            Backend(
                lambda request, index: {
                    "episode": EpisodeRecord(turns=1, messages=said),
                    "extra": {"turns": Event()},
                    "text": "\ud83d",
                }
            ),
            rewards,
        ),
        [0],
        1,
    )
    [one] = rewards.seen
    assert read_question(frame(Call(1, 0, 1.0, (one,)))[LENGTH_BYTES:]).completions == (one,)
    assert one.episode.messages[0]["tool_calls"][0]["function"]["arguments"] == {"n": "1" + "0" * 22}


def test_equal_rewards_are_sampled_anew_until_the_tries_are_used_up():
    backend = Backend()
    flat = Rewards(score=lambda one: 1.0)
    lot = sample(sampler(backend, flat), [0, 1], 3, resamplings=2)
    assert (lot.resampled, len(backend.asked), len(lot.groups)) == (4, 3, 2)
    assert len({tuple(asked) for asked in backend.asked}) == 3, "each attempt has seeds of its own"


def test_a_prompt_of_which_fewer_than_two_completions_have_a_score_is_not_sampled_anew():
    backend = Backend()
    rewards = Rewards(fails=lambda one: one.prompt == "prompt 0" or one.index > 0, score=lambda one: 1.0)
    lot = sample(sampler(backend, rewards), [0, 1], 3, resamplings=2)
    assert (lot.resampled, len(backend.asked), [group.lost for group in lot.groups]) == (0, 1, [3, 2])


def test_what_failed_in_groups_that_were_drawn_again_is_counted_with_them():
    """Three of four completions of the first try are lost of one prompt, one of the other; the latter is drawn twice again."""
    failing = {"lot.0.0": 3, "lot.0.1": 1}
    backend = Backend(
        lambda request, index: (
            {"finish_reason": "error", "extra": {"error": f"no {index}"}} if index < failing.get(request.id, 0) else {}
        )
    )
    lot = sample(sampler(backend, Rewards(score=lambda one: 1.0)), [0, 1], 4, resamplings=2)
    assert (lot.drawn, lot.failures, lot.resampled) == (2 * 4 + 2 * 4, ["no 0", "no 1", "no 2", "no 0"], 2)


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
        (
            lambda request, index: {"versions": (VersionSpan(version=1, start=0, end=2),)},
            r"gives versions \[\(1, 0, 2\)\] for 1 tokens, and they must cover",
        ),
    ],
)
@pytest.mark.parametrize("backend", [Backend, Server])
def test_a_backend_that_does_not_answer_as_it_is_asked_is_named(backend, change, message):
    with pytest.raises(PluginError, match=f"rollout 'fake' .*{message}"):
        sample(sampler(backend(change)), [0], 2)


def test_where_versions_are_needed_none_is_a_fault():
    with pytest.raises(PluginError, match=r"gives versions \[\] for 1 tokens"):
        sample(sampler(versions_needed=True), [0], 2)


def test_rewards_that_do_not_apply_do_not_make_a_group_differ():
    rewards = Rewards(score=lambda one: 1.0 if one.index else math.nan)
    assert sample(sampler(rewards=rewards), [0], 3, resamplings=1).resampled == 1


def test_rewards_that_do_not_apply_add_nothing():
    assert weighted_sum((1.0, math.nan, 2.0), (1.0, 5.0, 0.5)) == 2.0
    assert math.isnan(weighted_sum((math.nan,), (1.0,)))


def test_a_backend_that_leaves_some_out_is_named():
    class Lazy(Backend):
        def generate(self, requests):
            return list(super().generate(requests))[1:]

    with pytest.raises(PluginError, match="rollout 'fake' gave 1 of 2 completions for a prompt"):
        sample(sampler(Lazy()), [0], 2)


def test_a_server_is_asked_at_once_and_its_answers_are_scored_while_nobody_waits():
    backend, rewards = Server(at_once=False), Rewards()
    asking = sampler(backend, rewards)
    asked = asking.ask(PROMPTS, [2, 0], 3, "lot")
    assert list(backend.begun) == ["lot.0.2", "lot.0.0"] and not rewards.seen
    backend.go.set()
    wait(backend.begun.values(), timeout=5)
    assert len(rewards.seen) == 6
    alone = sample(sampler(), [2, 0], 3)
    assert [group.rewards for group in asking.sample(asked).groups] == [group.rewards for group in alone.groups]


def test_what_a_server_raises_reaches_the_one_who_waits():
    class Gone(Server):
        def generate(self, requests):
            raise RolloutError("the server is gone")

    with pytest.raises(RolloutError, match="the server is gone"):
        sample(sampler(Gone()), [0], 2)


@pytest.mark.parametrize("error", [KeyError("choices"), TimeoutError("slow")], ids=repr)
@pytest.mark.parametrize(("backend", "method"), [(Backend, "generate"), (Server, "generate"), (Server, "submit")])
def test_an_error_of_a_backends_own_names_it(monkeypatch, backend, method, error):
    def fail(self, asked):
        raise error

    monkeypatch.setattr(backend, method, fail)
    message = f"rollout 'fake' failed: {type(error).__name__}: {error}; mend its code (--debug shows where)"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        sample(sampler(backend()), [0], 2)


@pytest.mark.parametrize("backend", [Backend, Server])
def test_want_of_memory_is_no_fault_of_a_backend(backend):
    class Large(backend):
        def generate(self, requests):
            raise MemoryError

    with pytest.raises(MemoryError):
        sample(sampler(Large()), [0], 2)


def test_giving_up_cancels_what_is_not_begun():
    backend = Server(at_once=False)
    asked = sampler(backend).ask(PROMPTS, [0, 1, 2], 1, "lot")
    asked.cancel()
    backend.go.set()
    assert [future.cancelled() for future in backend.begun.values()] == [False, True, True]


@pytest.mark.parametrize("stale_tries", [1, STALE_TRIES])
def test_completions_of_weights_that_are_too_old_are_dropped_and_drawn_again(stale_tries):
    backend = Server()

    def version(request, index):
        old = request.id.endswith(".1") and int(request.id.split(".")[1]) < stale_tries and index == 1
        return {"versions": (VersionSpan(version=4 if old else 5, start=0, end=1),)}

    backend.change = version
    lot = sample(sampler(backend), [0, 1], 3, oldest=5)
    assert lot.stale == 3 * stale_tries and lot.resampled == 0
    assert [group.sample_id for group in lot.groups] == [0, 1] and all(group.oldest == 5 for group in lot.groups)


def test_a_backend_that_takes_no_new_weights_is_named():
    backend = Backend(lambda request, index: {"versions": (VersionSpan(version=3, start=0, end=1),)})
    with pytest.raises(RolloutError, match="still samples from weights of version 3, and none before 5"):
        sample(sampler(backend), [0], 2, oldest=5)


def test_an_episode_may_begin_with_more_than_its_prompt():
    backend = Backend(lambda request, index: {"prompt_ids": (*request.prompt_ids, 9, index)})
    backend.extends_prompts = True
    group = sample(sampler(backend), [1], 2).groups[0]
    tree = tree_of(PROMPTS[1], group)
    assert tree.prompt_ids == (1, 7, 9)
    first, second = group.completions
    assert [branch.token_ids for branch in tree.branches] == [(0, *first.token_ids), (1, *second.token_ids)]
    assert [branch.loss_mask for branch in tree.branches] == [(False, True)] * 2


def test_a_fork_is_a_branch_before_that_of_its_completion():
    fork = Fork(prompt_ids=(1, 7), token_ids=(5, 6, 8), loss_mask=(True, True, False), token_logps=(-1.0, -2.0, 0.0))
    whole = attrs.evolve(completion(RolloutRequest(id="r", prompt_ids=(1, 7, 5, 6), seeds=(3,)), 0, {}), forks=(fork,))
    tree = tree_of(PROMPTS[1], Group(sample_id=1, completions=(whole,), rewards=((2.0,),), lost=0))
    assert tree.prompt_ids == (1, 7)
    assert [(branch.token_ids, branch.loss_mask) for branch in tree.branches] == [
        ((5, 6, 8), (True, True, False)),
        ((5, 6, 3), (False, False, True)),
    ]
    assert [branch.sampled.fork for branch in tree.branches] == [True, False]
    assert tree.branches[0].sampled.columns["behavior_token_logps"].tolist() == [-1.0, -2.0]
    assert all(branch.sampled.rewards == (2.0,) for branch in tree.branches)
