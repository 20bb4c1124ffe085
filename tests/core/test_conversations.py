"""Episodes: the policy's turns and an environment's, over engines that answer at once and engines that take requests."""

from __future__ import annotations

import re
import threading
import time

import attrs
import pytest

from tests.core.conversations import FORGETS_THINKING, LiveScripted, ask, last_line, opened, user
from truing.errors import ConfigError, PluginError, RolloutError
from truing.rollout import Completion, Observation
from truing.rollout.conversation import episodes
from truing.rollout.conversation.episode import turn_seed
from truing.testing import FakeWeights, tiny_model, tiny_tokenizer

GUESS = '''
import asyncio, time

OPEN = []

class Guess:
    """The policy guesses a number."""

    def reset(self, seed=None, secret=3):
        self.secret, self.seed = secret, seed
        OPEN.append(self)
        return f"Guess ({seed})."

    def step(self, text):
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number")
        number = int(text)
        if number == self.secret:
            return "right", 1.0, True
        return ("higher" if number < self.secret else "lower"), -0.25, False

    def close(self):
        OPEN.remove(self)

class Few(Guess):
    name, capacity, most = "few", 2, 0

    def step(self, text):
        Few.most = max(Few.most, len(OPEN))
        time.sleep(0.01)
        return super().step(text)

class Awaited(Guess):
    async def step(self, text):
        await asyncio.sleep(0)
        return super().step(text)

class Slow(Guess):
    def step(self, text):
        if text == "7":
            time.sleep(30)
        return super().step(text)
'''
TOKENIZER = tiny_tokenizer()


def up_from(start):
    """Guess `start`, and one more each time that it was told higher."""

    def say(request):
        text = TOKENIZER.decode(list(request.prompt_ids))
        return str(start + len(re.findall("user\nhigher", text)))

    return say


@pytest.fixture
def play(tmp_path):
    (tmp_path / "guess.py").write_text(GUESS)
    lives = []

    def begin(say, environment="guess.Guess", **options):
        live = opened(tmp_path, say, **{"environment": environment, **options})
        lives.append(live)
        return live

    yield begin
    for live in lives:
        live.close()
        assert live.engine.closed == 1


def by_sample(live, *requests):
    found = {(one.request_id, one.index): one for one in live.generate(requests)}
    assert len(found) == sum(request.n for request in requests)
    return found


def module_of(live):
    return vars(__import__("sys").modules[live.stage.environments.make.__module__])


def text_of(ids):
    return TOKENIZER.decode(list(ids))


def counted(one):
    return text_of([token for token, counts in zip(one.token_ids, one.loss_mask, strict=True) if counts])


@pytest.fixture(params=[False, True], ids=["together", "server"])
def server(request):
    return request.param


def test_an_episode_is_one_row_of_turns_and_answers(play, server):
    live = play(up_from(2), server=server)
    request = ask(live, [user("Play.")], 11, columns={"secret": 3, "other": 1})
    [one] = live.generate([request])
    prompt = f"<|im_start|>user\nPlay.<|im_end|>\n<|im_start|>user\nGuess ({11 % 2**31}).<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(one.prompt_ids) == prompt
    assert text_of(one.token_ids) == "2<|im_end|>\n<|im_start|>user\nhigher<|im_end|>\n<|im_start|>assistant\n3<|im_end|>"
    assert counted(one) == "2<|im_end|>3<|im_end|>"
    assert (one.finish_reason, one.text, one.rewards) == ("stop", "2\n3", {"Guess": 0.75})
    assert (one.request_id, one.index, one.columns) == ("r", 0, {"secret": 3, "other": 1})
    assert one.extra["turns"] == 2
    said = [(message["role"], message["content"]) for message in one.extra["messages"]]
    assert said == [("user", "Guess (11)."), ("assistant", "2"), ("user", "higher"), ("assistant", "3"), ("user", "right")]
    assert hasattr(live, "submit") is server
    assert module_of(live)["OPEN"] == []


def test_turns_have_seeds_of_their_own_and_the_group_begins_alike(play, server):
    live = play(up_from(2), server=server)
    found = by_sample(live, ask(live, [user("Play.")], 2**40 + 5, 6))
    assert len({one.prompt_ids for one in found.values()}) == 1 and "Guess (5)" in text_of(found["r", 0].prompt_ids)
    asked = [request for call in live.engine.calls for request in call]
    seeds = sorted(seed for request in asked for seed in request.seeds)
    assert seeds == sorted([2**40 + 5, 6, turn_seed(2**40 + 5, 1), turn_seed(6, 1)])
    assert turn_seed(6, 1) != turn_seed(6, 2) != turn_seed(7, 1)


def test_the_open_episodes_take_their_turns_together(play):
    """Guessing from 0 for 0, 1 and 2 takes one turn, two and three; those that begin alike are samples of one request."""
    live = play(up_from(0))
    requests = [ask(live, [user("Play.")], 1, 2, id=str(secret), columns={"secret": secret}) for secret in range(3)]
    found = by_sample(live, *requests)
    assert [found[str(secret), 0].extra["turns"] for secret in range(3)] == [1, 2, 3]
    assert [sum(request.n for request in call) for call in live.engine.calls] == [6, 4, 2]
    assert [len(call) for call in live.engine.calls] == [1, 1, 1]  # all of them have read the same


def test_samples_do_not_depend_on_what_is_sampled_beside_them(play):
    live = play(lambda request: str(request.seeds[0] % 5))
    requests = [ask(live, [user("Play.")], 10 * n, 10 * n + 1, id=str(n), columns={"secret": n}) for n in range(4)]
    together = by_sample(live, *requests)
    alone = {key: one for request in requests for key, one in by_sample(live, request).items()}
    assert {key: one.token_ids for key, one in together.items()} == {key: one.token_ids for key, one in alone.items()}


def test_no_more_episodes_are_open_than_the_environments_allow(play, server):
    live = play(up_from(0), "guess.Few", server=server)
    found = by_sample(live, *(ask(live, [user("Play.")], 1, 2, 3, id=str(n), columns={"secret": n}) for n in range(3)))
    assert all(one.finish_reason == "stop" for one in found.values())
    assert module_of(live)["Few"].most == 2 and "in few" in live.about
    assert found["1", 0].rewards == {"few": 0.75}


def test_methods_may_be_async(play, server):
    live = play(up_from(2), "guess.Awaited", server=server)
    assert [one.rewards for one in live.generate([ask(live, [user("Play.")])])] == [{"Awaited": 0.75}]


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


def test_tokens_of_the_environment_count_for_the_limit(play):
    """A turn has 2 tokens, and what stands between it and the next 26."""
    live = play(lambda request: "1", max_turns=100)
    for limit, expected in ((60, (58, 3)), (29, (29, 2)), (28, (2, 1))):
        [one] = live.generate([ask(live, [user("Play.")], length=limit)])
        assert (len(one.token_ids), one.extra["turns"], one.finish_reason) == (*expected, "length")


def test_turns_end_at_the_most_turns(play):
    live = play(lambda request: "1", max_turns=3)
    [one] = live.generate([ask(live, [user("Play.")], length=500)])
    assert (one.finish_reason, one.extra["turns"], one.rewards) == ("length", 3, {"Guess": -0.75})
    assert one.loss_mask[-1] and counted(one) == "1<|im_end|>" * 3


def test_a_turn_that_is_cut_gets_an_end_that_is_not_counted(play):
    live = play(lambda request: "1234567", max_turn_length=2, max_turns=2)
    [one] = live.generate([ask(live, [user("Play.")], columns={"secret": 99})])
    assert text_of(one.token_ids) == "12<|im_end|>\n<|im_start|>user\nhigher<|im_end|>\n<|im_start|>assistant\n12"
    assert counted(one) == "1212" and one.text == "12\n12"
    first_end = one.token_ids.index(TOKENIZER.eos_token_id)
    assert first_end == 2 and not one.loss_mask[first_end] and one.token_logps[first_end] == 0.0


def test_an_episode_that_its_turn_limit_cut_at_the_end_was_not_ended_by_the_policy(play):
    live = play(lambda request: "3", max_turns=2)
    [one] = live.generate([ask(live, [user("Play.")], length=1)])
    assert (one.finish_reason, one.rewards, text_of(one.token_ids)) == ("length", {"Guess": 1.0}, "3")


def test_history_that_the_template_changes_begins_a_new_row(play, server):
    def think(request):
        return f"<think>{'x' * (len(request.prompt_ids) % 7)}</think>{up_from(2)(request)}"

    class Forgiving:
        """Reads what follows the thinking."""

        def reset(self, seed=None):
            return "Guess."

        def step(self, text):
            return ("right", 1.0, True) if text.endswith("3") else ("higher", 0.0, False)

    live = play(think, server=server, template=FORGETS_THINKING)
    live.stage.environments.make = Forgiving
    assert "renders history otherwise before messages of user" in live.about
    [one] = live.generate([ask(live, [user("Play.")])])
    [fork] = one.forks
    assert "think" in text_of(fork.token_ids) and all(fork.loss_mask)
    assert (
        text_of(fork.prompt_ids) == "<|im_start|>user\nPlay.<|im_end|>\n<|im_start|>user\nGuess.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(one.prompt_ids) == (
        text_of(fork.prompt_ids) + "2<|im_end|>\n<|im_start|>user\nhigher<|im_end|>\n<|im_start|>assistant\n"
    )
    assert all(one.loss_mask) and one.extra["turns"] == 2


def test_prompts_of_plain_text_are_followed_by_text(play, server):
    live = play(lambda request: "3" if text_of(request.prompt_ids).endswith("higher") else "2", server=server)
    [one] = live.generate([ask(live, "Play! ")])
    assert text_of(one.prompt_ids) == "Play! Guess (1)."
    assert text_of(one.token_ids) == "2<|im_end|>higher3<|im_end|>" and counted(one) == "2<|im_end|>3<|im_end|>"


def test_new_weights_reach_the_engine(play, server):
    live = play(up_from(3), server=server)
    live.update_weights(5, FakeWeights(tiny_model()))
    [one] = live.generate([ask(live, [user("Play.")])])
    assert [(span.version, span.start, span.end) for span in one.versions] == [(5, 0, len(one.token_ids))]


def test_what_the_engine_raises_ends_all(play, server):
    def fail(request):
        raise RolloutError("the server is gone")

    live = play(fail, server=server)
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


def test_a_request_is_answered_in_the_order_of_its_seeds(play):
    live = play(lambda request: str(request.seeds[0]), server=True, max_turns=1)
    answered: tuple[Completion, ...] = live.submit(ask(live, [user("Play.")], 4, 3, 2)).result(timeout=20)
    assert [(one.index, one.text) for one in answered] == [(0, "4"), (1, "3"), (2, "2")]


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


def test_the_last_line_that_is_read(play):
    """The helper of these tests."""
    live = play(up_from(2))
    list(live.generate([ask(live, [user("Play.")])]))
    assert last_line(live.engine, live.engine.calls[1][0]) == "higher"
