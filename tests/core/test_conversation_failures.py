"""What goes wrong in an episode, and what it costs."""

from __future__ import annotations

import re
import threading
import time

import attrs
import pytest

from tests.core.conversations import (
    TOKENIZER,
    LiveScripted,
    ask,
    by_sample,
    module_of,
    up_from,
    user,
)
from truing.errors import ConfigError, PluginError, RolloutError
from truing.rollout import Observation
from truing.rollout.conversation import episodes
from truing.testing.models import CHAT_TEMPLATE


def test_what_an_environment_raises_costs_its_episode_alone(play, server, tmp_path):
    live = play(lambda request: "seven" if request.seeds[0] == 7 else "3", server=server)
    found = by_sample(live, ask(live, [user("Play.")], 3, 7))
    assert found["r", 0].finish_reason == "stop" and found["r", 0].rewards == {"Guess": 1.0}
    bad = found["r", 1]
    assert (bad.finish_reason, bad.token_ids, bad.rewards) == ("error", (), {})
    assert bad.extra["error"] == "the environment's step failed: ValueError: 'seven' is no number"
    assert module_of(live)["OPEN"] == []
    assert (tmp_path / "episodes.log").read_text() == f"r[1]: error: {bad.extra['error']}\n"


def test_an_environment_that_hangs_costs_its_episode_when_its_time_is_up(play, server):
    live = play(lambda request: str(request.seeds[0]), "guess.Slow", server=server, environment_timeout=0.5)
    started = time.monotonic()
    found = by_sample(live, ask(live, [user("Play.")], 3, 7))
    assert time.monotonic() - started < 10
    assert found["r", 0].finish_reason == "stop"
    assert found["r", 1].extra["error"] == "the environment's step gave no answer within 0.5 s"


def test_what_the_engine_raises_ends_all(play, server):
    def fail(request):
        raise RolloutError("the server is gone")

    live = play(fail, server=server)
    with pytest.raises(RolloutError, match="the server is gone"):
        list(live.generate([ask(live, [user("Play.")], 1, 2)]))
    assert module_of(live)["OPEN"] == []


def test_an_environment_that_is_being_closed_when_another_episode_fails_is_closed_to_the_end(play):
    def fail(request):
        raise RolloutError("the server is gone")

    live = play(fail, "guess.Lingers", server=True)
    with pytest.raises(RolloutError, match="the server is gone"):
        list(live.generate([ask(live, [user("Play.")], 1, 2)]))
    assert module_of(live)["OPEN"] == []


def test_a_turn_that_the_engine_cannot_sample_costs_its_episode(play, server, monkeypatch):
    complete = LiveScripted.complete

    def failing(self, request, index):
        made = complete(self, request, index)
        bad = request.seeds[index] == 7
        return attrs.evolve(made, finish_reason="error", token_ids=(), extra={"error": "not finite"}) if bad else made

    monkeypatch.setattr(LiveScripted, "complete", failing)
    live = play(up_from(3), server=server)
    found = by_sample(live, ask(live, [user("Play.")], 7, 8))
    assert found["r", 0].extra["error"] == "not finite" and found["r", 1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda asked: [], "gave no completion for 2 of 2 turns"),
        (lambda asked: [asked[0], asked[0]], r"answers 'r/0.0'\[1\], which was not asked"),
        (lambda asked: [attrs.evolve(one, prompt_ids=(1,)) for one in asked], "completes other prompt tokens"),
    ],
)
def test_an_engine_that_does_not_answer_as_it_is_asked_is_named(play, monkeypatch, answers, message):
    generate = LiveScripted.generate
    monkeypatch.setattr(LiveScripted, "generate", lambda self, requests: iter(answers(list(generate(self, requests)))))
    live = play(up_from(3))
    with pytest.raises(PluginError, match=f"rollout 'scripted' {message}"):
        list(live.generate([ask(live, [user("Play.")], 1, 2)]))


def test_an_abandoned_call_closes_its_environments(play, server):
    live = play(lambda request: "3" if request.seeds[0] == 1 else "1", server=server, max_turns=100)
    going = live.generate([ask(live, [user("Play.")], 1, id="a"), ask(live, [user("Play.")], 2, id="b", length=10_000)])
    assert next(going).request_id == "a"
    going.close()
    deadline = time.monotonic() + 10
    while module_of(live)["OPEN"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert module_of(live)["OPEN"] == []


def test_a_request_that_is_cancelled_closes_its_environments(play):
    begun, go = threading.Event(), threading.Event()

    def wait(request):
        begun.set()
        go.wait(10)
        return "3"

    live = play(wait, server=True)
    future = live.submit(ask(live, [user("Play.")]))
    assert begun.wait(10) and len(module_of(live)["OPEN"]) == 1
    assert future.cancel()
    deadline = time.monotonic() + 10
    while module_of(live)["OPEN"] and time.monotonic() < deadline:
        time.sleep(0.01)
    go.set()
    assert module_of(live)["OPEN"] == []


def test_environments_that_do_not_answer_at_all_are_waited_for_no_longer_than_they_may_take(play, monkeypatch):
    live = play(up_from(3), environment_timeout=0.1)
    for name in ("GRACE_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(episodes, name, 0.0)
    live.loop.call_soon_threadsafe(time.sleep, 2)  # something blocks the loop
    with pytest.raises(RolloutError, match="no episode has come to its next turn, or its end, within 0.4 s"):
        list(live.generate([ask(live, [user("Play.")])]))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (Observation(), "the environment answered nothing, and is not done"),
        (Observation(messages=(user("x"),), reward=float("nan")), "step gave the reward nan, which is no finite number"),
        (Observation(messages=(user("x"),), reward="much"), "step gave the reward 'much', which is no finite number"),
        (Observation(messages=("x",)), "step gave str 'x' as a message, which must be a dict with `role` and `content`"),
        (Observation(messages=({"role": "user"},)), "as a message, which must be a dict with `role` and `content`"),
        (Observation(messages=(user("x"),), extra="e"), "step gave str 'e' as extra, which must be a dict"),
        (Observation(messages=3), "step failed: TypeError: "),
        (("x", float("nan"), False), "returned the reward nan, which is no finite number; it must return text"),
        (3, "guess.Guess.step returned int 3; it must return text"),
    ],
)
def test_answers_that_cannot_be_used_cost_their_episode(play, observation, message):
    live = play(up_from(3))

    class Broken:
        def reset(self, seed=None):
            return "Guess."

        def step(self, text):
            return observation

    live.stage.environments.make = Broken
    [one] = live.generate([ask(live, [user("Play.")])])
    assert one.finish_reason == "error" and message in one.extra["error"]


def of_class(play, step=lambda self, text: (None, None, True), close=lambda self: None, say=None, **options):
    live = play(say or up_from(3), **options)
    members = {"reset": lambda self, seed=None: "Guess.", "step": step, "close": close}
    live.stage.environments.make = type("Env", (), members)
    return live


def test_text_with_half_a_surrogate_pair_is_read_with_a_replacement(play):
    live = of_class(play, lambda self, text: ("\ud83d!", 1.0, False), max_turns=2)
    [one] = live.generate([ask(live, [user("Play.")])])
    assert one.finish_reason == "length" and "user\n\ufffd!<|im_end|>" in TOKENIZER.decode(list(one.token_ids))
    live = of_class(play, lambda self, text: ("\ud83d!", 1.0, False), max_turns=2)
    [one] = live.generate([ask(live, "Play.")])
    assert one.finish_reason == "length" and "\ufffd!" in TOKENIZER.decode(list(one.token_ids))


def test_messages_that_the_template_refuses_cost_their_episode(play, server):
    refuses = (
        CHAT_TEMPLATE
        + "{% for message in messages %}{% if message.content == 'bad' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    live = of_class(
        play,
        lambda self, text: ("bad" if text == "7" else None, 1.0, text != "7"),
        say=lambda request: str(request.seeds[0]),
        server=server,
        template=refuses,
    )
    found = by_sample(live, ask(live, [user("Play.")], 7, 8))
    assert found["r", 0].finish_reason == "error" and found["r", 1].finish_reason == "stop"
    assert (
        found["r", 0]
        .extra["error"]
        .endswith("cannot be rendered: the chat template refuses the messages: no; give another model.chat_template")
    )
    live.stage.environments.make.reset = lambda self, seed=None: "bad"
    [one] = live.generate([ask(live, [user("Play.")])])
    assert one.extra["error"].startswith("a conversation of user, user cannot be rendered")


def test_an_episode_without_rewards_is_worth_nothing_and_not_left_out(play):
    [one] = (live := of_class(play)).generate([ask(live, [user("Play.")])])
    assert (one.finish_reason, one.rewards) == ("stop", {"Guess": 0.0})


def test_a_timeout_of_the_environments_own_is_told_as_such(play, server):
    def step(self, text):
        raise TimeoutError("the shop is shut")

    live = of_class(play, step, server=server)
    [one] = live.generate([ask(live, [user("Play.")])])
    assert one.extra["error"] == "the environment's step failed: TimeoutError: the shop is shut"


def test_environments_have_columns_of_their_own(play):
    live = of_class(play)
    live.stage.environments.make.reset = lambda self, seed, words: words.pop()
    request = ask(live, [user("Play.")], 1, 2, columns={"words": ["a", "b"]})
    found = by_sample(live, request)
    assert [one.episode.messages[0]["content"] for one in found.values()] == ["b", "b"]
    assert request.columns == {"words": ["a", "b"]}


def test_no_thread_is_left_of_an_environment_that_cannot_be_closed(play):
    def close(self):
        raise OSError("it will not go")

    live = of_class(play, close=close)
    by_sample(live, ask(live, [user("Play.")], *range(8)))
    deadline = time.monotonic() + 10
    while (left := [one.name for one in threading.enumerate() if one.name == "Guess"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def test_an_environment_that_is_done_at_once_has_no_episode(play):
    live = play(up_from(3))

    class Over:
        def reset(self, seed=None):
            return None, 1.0, True

    live.stage.environments.make = Over
    [one] = live.generate([ask(live, [user("Play.")])])
    assert one.extra["error"] == "the environment was done before the first turn"


def test_what_fails_when_it_is_closed_costs_nothing_and_is_told(play, tmp_path):
    live = play(up_from(3))

    class Clinging:
        def reset(self, seed=None):
            return None

        def step(self, text):
            return None, 2, True

        def close(self):
            raise OSError("it will not go")

    live.stage.environments.make = Clinging
    [one] = live.generate([ask(live, [user("Play.")])])
    assert (one.finish_reason, one.rewards) == ("stop", {"Guess": 2.0})
    assert one.extra["close_error"] == "OSError: it will not go"
    assert "close_error: OSError: it will not go" in (tmp_path / "episodes.log").read_text()


def test_prompts_beyond_the_context_of_the_policy_cost_their_episode(play):
    live = play(up_from(3))
    [one] = live.generate([ask(live, [user("Play. " * 400)])])
    assert re.fullmatch(r"the prompt has \d+ tokens, and the policy was made for 2048 in all", one.extra["error"])


def test_prompts_of_another_template_are_refused(play, server):
    live = play(up_from(3), server=server)
    request = attrs.evolve(ask(live, [user("Play.")]), prompt_ids=(5, 6))
    with pytest.raises(ConfigError, match="messages of a prompt were rendered to 2 tokens"):
        list(live.generate([request]))
