from __future__ import annotations

import re

import attrs
import pytest
import torch

from truing.errors import ConfigError, PluginError
from truing.rollout import RolloutRequest, Sampling
from truing.rollout.functions import SIGNATURE, FunctionRollout, LiveFunctionRollout
from truing.testing import FakeWeights, check_rollout, fake_context, tiny_model, tiny_tokenizer


@pytest.fixture
def context(tmp_path):
    return fake_context(tmp_path)


def ask(prompt_ids, *seeds, id="a", **sampling):
    return RolloutRequest(id=id, prompt_ids=tuple(prompt_ids), seeds=seeds, sampling=Sampling(**sampling))


def shout(model, processing_class, prompts, generation_config=None):
    return [prompt.upper() for prompt in prompts]


def sample(model, processing_class, prompts, generation_config=None):
    """What a user would write with transformers, one prompt at a time."""
    texts = []
    for prompt in prompts:
        inputs = processing_class(prompt, return_tensors="pt")
        ids = model.generate(**inputs, generation_config=generation_config)[0, inputs["input_ids"].shape[1] :]
        texts.append(processing_class.decode(ids, skip_special_tokens=True))
    return texts


def test_strings_become_completions(context):
    tokenizer = context.tokenizer
    live = LiveFunctionRollout("shout", shout, context)
    request = attrs.evolve(ask(tokenizer.encode("hi"), 1, 2, max_completion_length=5), columns={"answer": 3})
    first, second = live.generate([request])
    assert (first.request_id, first.index, second.index) == ("a", 0, 1)
    assert first.prompt_ids == request.prompt_ids
    assert first.token_ids == (*tokenizer.encode("HI"), tokenizer.eos_token_id)
    assert (first.text, first.finish_reason, first.token_logps, first.columns) == ("HI", "stop", None, {"answer": 3})
    assert [(span.version, span.start, span.end) for span in first.versions] == [(0, 0, 3)]


@pytest.mark.parametrize(
    ("text", "tokens", "reason"),
    [("abcdef", "abcd", "length"), ("abcd", "abcd", "length"), ("abc", "abc<|im_end|>", "stop"), ("", "<|im_end|>", "stop")],
)
def test_limit_and_end_token(context, text, tokens, reason):
    live = LiveFunctionRollout("f", lambda model, processing_class, prompts, generation_config=None: [text], context)
    [completion] = live.generate([ask([5], 1, max_completion_length=4)])
    assert context.tokenizer.decode(completion.token_ids) == tokens
    assert completion.finish_reason == reason


def test_an_error_of_the_function_says_where(context, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def draw(model, processing_class, prompts, generation_config=None):\n    return [{}[0]]\n")
    live = FunctionRollout(name="mine.draw", base_dir=tmp_path).open(context)
    message = f"rollout function 'mine.draw' failed: {file}:2: KeyError: 0; mend its code (--debug shows where)"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        list(live.generate([ask([5], 1)]))


def test_an_end_token_in_the_text_is_not_doubled(context):
    live = LiveFunctionRollout("f", lambda model, processing_class, prompts, generation_config=None: ["ok<|im_end|>"], context)
    [completion] = live.generate([ask([5], 1)])
    assert context.tokenizer.decode(completion.token_ids) == "ok<|im_end|>"
    assert completion.text == "ok"


def test_prompts_keep_their_markup_and_lose_the_token_that_the_tokenizer_adds(tmp_path):
    tokenizer = tiny_tokenizer(add_bos=True)
    context = attrs.evolve(fake_context(tmp_path), tokenizer=tokenizer)
    seen = []

    def look(model, processing_class, prompts, generation_config=None):
        seen.extend(prompts)
        assert model is context.models["policy"] and processing_class.get_vocab() == tokenizer.get_vocab()
        return prompts

    ids = tokenizer.encode("<|im_start|>user\nHi")
    list(LiveFunctionRollout("f", look, context).generate([ask(ids, 1, 2)]))
    assert seen == ["<|im_start|>user\nHi"] * 2
    assert tokenizer.encode(seen[0]) == ids


def test_messages_are_rendered_as_text_for_functions_that_ask_for_it_so(context):
    messages = [{"role": "user", "content": "Hi"}]

    def look(model, processing_class, prompts, generation_config=None):
        text = processing_class.apply_chat_template(messages, processing_class=False, add_generation_prompt=True)
        assert text == context.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = processing_class.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == context.tokenizer.encode(text)
        return prompts

    list(LiveFunctionRollout("f", look, context).generate([ask([5], 1)]))
    assert "apply_chat_template" not in vars(context.tokenizer)


def test_one_call_for_each_sampling_with_its_generation_config(context):
    calls = []

    def look(model, processing_class, prompts, generation_config=None):
        calls.append((len(prompts), generation_config.max_new_tokens, generation_config.do_sample, generation_config.top_p))
        return prompts

    requests = [
        ask([5], 1, 2, id="a", max_completion_length=3, top_p=0.5),
        ask([6], 3, id="b", max_completion_length=8, temperature=0.0),
        ask([7], 4, id="c", max_completion_length=3, top_p=0.5),
    ]
    completions = list(LiveFunctionRollout("f", look, context).generate(requests))
    assert sorted(calls, key=lambda call: call[1]) == [(3, 3, True, 0.5), (1, 8, False, None)]
    assert sorted((one.request_id, one.index) for one in completions) == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]


def test_same_requests_give_the_same_samples_and_leave_the_generator_alone(context):
    live = LiveFunctionRollout("sample", sample, context)
    requests = [ask(context.tokenizer.encode("abc"), 1, 2, max_completion_length=8)]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    once = [one.token_ids for one in live.generate(requests)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert [one.token_ids for one in live.generate(requests)] == once
    assert once[0] != once[1]
    other = [one.token_ids for one in live.generate([attrs.evolve(requests[0], seeds=(3, 4))])]
    assert other != once


def test_greedy_sampling_follows_the_model(context):
    live = LiveFunctionRollout("sample", sample, context)
    [one, two] = live.generate([ask(context.tokenizer.encode("abc"), 1, 2, temperature=0.0, max_completion_length=4)])
    assert one.token_ids == two.token_ids


def test_new_weights_mark_the_version(context):
    live = LiveFunctionRollout("shout", shout, context)
    live.update_weights(4, FakeWeights(tiny_model()))
    [completion] = live.generate([ask([5], 1)])
    assert [span.version for span in completion.versions] == [4]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (["a"], "rollout function 'f' returned 1 completions for 2 prompts"),
        ("ab", "rollout function 'f' must return a list of strings, got str 'ab'"),
        ([1, 2], r"must return a list of strings, got list \[1, 2\]"),
    ],
)
def test_wrong_results_are_named(context, result, message):
    live = LiveFunctionRollout("f", lambda model, processing_class, prompts, generation_config=None: result, context)
    with pytest.raises(PluginError, match=message):
        list(live.generate([ask([5], 1, 2)]))


@pytest.mark.parametrize("function", [lambda prompts: prompts, lambda a, b, c: c, 3], ids=["one", "no_config", "not_callable"])
def test_a_function_that_cannot_be_called_so_is_refused(context, function):
    with pytest.raises(ConfigError, match="rollout function 'f' cannot be called as") as info:
        LiveFunctionRollout("f", function, context)
    assert SIGNATURE in str(info.value)


def test_function_beside_the_configuration_keeps_the_promises(tmp_path, context):
    (tmp_path / "my_rollout.py").write_text(
        "def echo(model, processing_class, prompts, generation_config=None):\n    return [prompt[::-1] for prompt in prompts]\n"
    )
    settings = FunctionRollout(name="my_rollout.echo", base_dir=tmp_path)
    [completion] = settings.open(context).generate([ask(context.tokenizer.encode("ab"), 1)])
    assert completion.text == "ba"


def test_the_contract_holds_for_a_sampling_function(context):
    @attrs.frozen(kw_only=True)
    class Sampled:
        name = "sampled"

        def open(self, context):
            return LiveFunctionRollout("sample", sample, context)

    check_rollout(Sampled, context, deterministic=False)
