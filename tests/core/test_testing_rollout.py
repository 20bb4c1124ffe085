"""check_rollout passes backends that keep their promises, and names the promise that a backend breaks."""

from __future__ import annotations

import math
import random
from concurrent.futures import Future

import attrs
import pytest

from tests.core.engines import Letters
from truing.rollout import RolloutRequest, Sampling, VersionSpan
from truing.testing import FakeRollout, check_rollout, fake_context
from truing.testing.fakes import LiveFakeRollout


class LiveBad(LiveFakeRollout):
    """The fake backend, with every completion changed by `change(completion)`, and lists of them by `filter`."""

    def __init__(self, tokenizer, change, whole):
        super().__init__(tokenizer)
        self.change = change
        self.whole = whole

    def generate(self, requests):
        return iter(self.whole([self.change(completion) for completion in super().generate(requests)]))


def backend(change=lambda completion: completion, whole=lambda completions: completions, live=LiveBad, **members):
    body = {
        "__module__": __name__,
        "__annotations__": {},
        "name": "bad",
        "open": lambda self, context: live(context.tokenizer, change, whole),
        **members,
    }
    return attrs.frozen(kw_only=True)(type("Bad", (), body))


def evolve(**changes):
    return lambda completion: attrs.evolve(completion, **{key: value(completion) for key, value in changes.items()})


def breaks(candidate, message, **options):
    with pytest.raises(AssertionError, match=message):
        check_rollout(candidate, **options)


def test_good_backends_pass(tmp_path):
    check_rollout(FakeRollout)
    check_rollout(FakeRollout(), fake_context(tmp_path))
    check_rollout(backend())
    check_rollout(backend(evolve(versions=lambda one: (), token_logps=lambda one: None)))
    check_rollout(backend(evolve(loss_mask=lambda one: (True,) * len(one.token_ids))))
    check_rollout(Letters())


def test_the_fake_draws_by_seed_and_prompt(tmp_path):
    live = FakeRollout().open(fake_context(tmp_path))
    request = RolloutRequest(id="a", prompt_ids=(5,), seeds=(1, 2, 1), sampling=Sampling(max_completion_length=9))
    first, second, third = live.generate([request])
    assert first.token_ids == third.token_ids != second.token_ids
    assert first.token_logps == (-math.log(27),) * len(first.token_ids)
    [other] = live.generate([attrs.evolve(request, prompt_ids=(6,), seeds=(1,))])
    assert other.token_ids != first.token_ids


def test_a_class_that_the_registry_refuses():
    breaks(backend(name="Not Allowed"), "the registry would refuse this plugin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.text, "must yield truing.Completion, got str"),
        (evolve(request_id=lambda one: "z"), "answers 'z', which was not asked"),
        (evolve(index=lambda one: 0), r"once for each, with indexes 0 to 1, got \[0, 0\]"),
        (evolve(prompt_ids=lambda one: one.prompt_ids[1:]), "prompt_ids differ from those of the request"),
        (evolve(finish_reason=lambda one: "done"), "finish_reason is 'done'; use one of stop, length, error"),
        (
            evolve(finish_reason=lambda one: "error", extra=lambda one: {"why": "timeout"}),
            "finished with an error, .*'why': 'timeout'",
        ),
        (
            evolve(token_ids=lambda one: one.token_ids * 7, token_logps=lambda one: None, versions=lambda one: ()),
            "tokens, and max_completion_length is 6; stop there",
        ),
        (
            evolve(
                token_ids=lambda one: (5,),
                token_logps=lambda one: None,
                versions=lambda one: (),
                finish_reason=lambda one: "length",
            ),
            'finish_reason is "length" at 1 of 6 tokens',
        ),
        (evolve(token_logps=lambda one: one.token_logps[1:]), r"\d token_logps for \d tokens; give one for each, or None"),
        (evolve(token_logps=lambda one: (0.5,) * len(one.token_ids)), "token_logps must be finite natural logarithms"),
        (evolve(token_logps=lambda one: (float("nan"),) * len(one.token_ids)), "token_logps must be finite natural logarithms"),
        (evolve(loss_mask=lambda one: (True,)), "a loss_mask of 1 for [2-6] tokens"),
        (evolve(versions=lambda one: one.versions * 2), "versions must cover its . tokens in order without gaps"),
        (evolve(versions=lambda one: (VersionSpan(version=0, start=1, end=len(one.token_ids)),)), "in order without gaps, got"),
        (evolve(versions=lambda one: (VersionSpan(version=0, start=0, end=len(one.token_ids) + 1),)), "in order without gaps"),
    ],
)
def test_completions_that_say_something_wrong(change, message):
    breaks(backend(change), message)


def test_a_backend_in_whose_prompts_an_environment_has_the_first_words():
    class Acts(LiveBad):
        extends_prompts = True

    check_rollout(backend(evolve(prompt_ids=lambda one: (*one.prompt_ids, 5)), live=Acts))
    check_rollout(backend(evolve(finish_reason=lambda one: "length"), live=Acts))
    breaks(backend(evolve(prompt_ids=lambda one: (5, *one.prompt_ids)), live=Acts), "prompt_ids do not begin with those of the")


def test_requests_that_are_not_answered_in_full():
    breaks(backend(whole=lambda completions: completions[:-1]), "must answer a request of 1 seeds once for each")
    breaks(backend(whole=lambda completions: completions * 2), r"with indexes 0 to 0, got \[0, 0\]")


def test_an_answer_without_a_question(tmp_path):
    request = RolloutRequest(id="a", prompt_ids=(1,), seeds=(1,))
    stray = next(FakeRollout().open(fake_context(tmp_path)).generate([request]))
    breaks(backend(whole=lambda completions: completions or [stray]), "answers when nothing is asked")


def test_seeds_that_are_not_used():
    rng = random.Random(0)
    drawn = evolve(token_ids=lambda one: tuple(rng.randrange(4, 260) for _ in one.token_ids))
    breaks(backend(drawn), "gives other tokens for the same prompts and seeds")
    check_rollout(backend(drawn), deterministic=False)


def test_samples_that_depend_on_their_company():
    def together(completions):
        return [attrs.evolve(one, token_ids=(len(completions) + 4, *one.token_ids[1:])) for one in completions]

    breaks(backend(whole=together), "gives other tokens when a request comes alone")
    check_rollout(backend(whole=together), deterministic=False)


def test_new_weights_that_are_not_marked():
    class Stale(LiveBad):
        def update_weights(self, version, source):
            pass

    breaks(backend(live=Stale), r"still marks tokens with version 0 after update_weights\(7, ...\)")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda live, request: tuple(live.generate([request])), "submit must return a concurrent.futures.Future, got tuple"),
        (
            lambda live, request: done(reversed(tuple(live.generate([request])))),
            r"in the order of its seeds, got the indexes \[1, 0\]",
        ),
        (
            lambda live, request: done(live.generate([attrs.evolve(request, seeds=tuple(seed + 1 for seed in request.seeds))])),
            "other tokens by submit than by generate",
        ),
    ],
)
def test_requests_that_are_submitted(answer, message):
    class LiveSubmits(LiveBad):
        def submit(self, request):
            return answer(self, request)

    breaks(backend(live=LiveSubmits), message)


def done(completions):
    future = Future()
    future.set_result(tuple(completions))
    return future


def test_closing_twice_and_closing_after_a_failure():
    closed = []

    class Once(LiveBad):
        def close(self):
            closed.append(self)
            if len(closed) > 1:
                raise RuntimeError("closed already")

    breaks(backend(live=Once), "fails when it is closed a second time: closed already")
    closed.clear()
    breaks(backend(lambda one: one.text, live=Once), "must yield truing.Completion")
    assert len(closed) == 1
