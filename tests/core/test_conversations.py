"""Episodes: the policy's turns and an environment's, over engines that answer at once and engines that take requests."""

from __future__ import annotations

from tests.core.conversations import (
    FORGETS_THINKING,
    GUESS,
    TOKENIZER,
    ask,
    by_sample,
    module_of,
    opened,
    text_of,
    up_from,
    user,
)
from truing.rollout import Completion
from truing.rollout.conversation.episode import turn_seed
from truing.rollout.functions import FunctionRollout
from truing.testing import FakeWeights, tiny_model


def counted(one):
    return text_of([token for token, counts in zip(one.token_ids, one.loss_mask, strict=True) if counts])


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


def test_a_plain_function_may_write_the_turns(tmp_path):
    """Its strings are tokenised, without log-probabilities: the trainer computes them."""
    (tmp_path / "mine.py").write_text(
        "def count(model, processing_class, prompts, generation_config=None):\n"
        "    return [str(2 + prompt.count('user\\nhigher')) for prompt in prompts]\n"
    )
    (tmp_path / "guess.py").write_text(GUESS)
    live = opened(tmp_path, None, backend=FunctionRollout(name="mine.count", base_dir=tmp_path), environment="guess.Guess")
    [one] = live.generate([ask(live, [user("Play.")])])
    live.close()
    assert (one.finish_reason, one.text, one.token_logps, counted(one)) == ("stop", "2\n3", None, "2<|im_end|>3<|im_end|>")


def test_new_weights_reach_the_engine(play, server):
    live = play(up_from(3), server=server)
    live.update_weights(5, FakeWeights(tiny_model()))
    [one] = live.generate([ask(live, [user("Play.")])])
    assert [(span.version, span.start, span.end) for span in one.versions] == [(5, 0, len(one.token_ids))]


def test_a_request_is_answered_in_the_order_of_its_seeds(play):
    live = play(lambda request: str(request.seeds[0]), server=True, max_turns=1)
    answered: tuple[Completion, ...] = live.submit(ask(live, [user("Play.")], 4, 3, 2)).result(timeout=20)
    assert [(one.index, one.text) for one in answered] == [(0, "4"), (1, "3"), (2, "2")]
