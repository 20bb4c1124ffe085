"""Messages behind a turn: their tokens, whatever the template does with history."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.core.conversations import FORGETS_THINKING, TOOLS_TEMPLATE, user
from truing.data.encode import Encoder
from truing.data.templates import TEMPLATES
from truing.errors import ConfigError
from truing.loss import Layout
from truing.rollout import RolloutRequest
from truing.rollout.conversation.rendering import ChatRenderer, TextRenderer
from truing.testing import tiny_tokenizer
from truing.testing.models import CHAT_TEMPLATE

SCHEMA = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_END = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ALTERNATES = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS_AT_THE_END = CHAT_TEMPLATE.replace(
    "{% generation %}",
    "{% generation %}{% if loop.last and '</think>' not in message['content'] %}<think>\n\n</think>\n\n{% endif %}",
)
"""As Qwen 3's: a last turn without thinking gets an empty one, which an earlier turn does not."""


def tokenizer_with(template):
    tokenizer = tiny_tokenizer()
    if "<|eot_id|>" in template:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]})
    tokenizer.chat_template = template
    return tokenizer


def renderer(template=CHAT_TEMPLATE, tools=()):
    return ChatRenderer(Encoder(tokenizer_with(template), Layout.ROLLOUT), tuple(tools))


def rendered(tokenizer, messages, tools=None):
    text = tokenizer.apply_chat_template([messages], tools=tools, tokenize=False, add_generation_prompt=True)[0]
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def request_for(tokenizer, prompt):
    return RolloutRequest(id="r", prompt=prompt, prompt_ids=rendered(tokenizer, prompt), seeds=(1,))


content = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(content, st.lists(content, min_size=1, max_size=2)), min_size=1, max_size=3), content)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TEMPLATES["llama3"]], ids=["chatml", "llama3"])
def test_what_is_appended_turn_by_turn_is_what_the_template_renders_as_a_whole(template, turns, question):
    """For a tokenizer of bytes, of which any text has one encoding, and templates that change no content."""
    chat = renderer(template)
    tokenizer = chat.encoder.tokenizer
    history = [user(question)]
    row = chat.begin(request_for(tokenizer, history), ())
    end = chat.turn_end
    for said, answers in turns:
        row = (*row, *tokenizer.encode(said, add_special_tokens=False), *end)
        history.append(assistant(said))
        messages = [user(answer) for answer in answers]
        follows = chat.go_on(row, history, messages)
        assert not follows.anew
        row = (*row, *follows.ids)
        history += messages
    assert row == rendered(tokenizer, history)


def test_a_tokenizer_that_begins_a_text_with_a_space_puts_none_behind_a_turn():
    """As those of SentencePiece do: the space is there where the text begins, and not after a special token."""
    special = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, "▁", "\n", *string.ascii_lowercase])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=CHAT_TEMPLATE
    )
    assert tokenizer.tokenize("a") == ["▁", "a"]
    chat = ChatRenderer(Encoder(tokenizer, Layout.ROLLOUT))
    history = [user("q"), assistant("a")]
    row = (*rendered(tokenizer, history[:1]), *tokenizer.convert_tokens_to_ids(["a", "<|im_end|>"]))
    follows = chat.go_on(row, history, [user("c")])
    assert (*row, *follows.ids) == rendered(tokenizer, [*history, user("c")])


def test_prompts_with_messages_and_tools_behind_them_are_rendered_as_one():
    chat = renderer(TOOLS_TEMPLATE, [SCHEMA])
    tokenizer = chat.encoder.tokenizer
    prompt = [user("Hi")]
    assert chat.begin(request_for(tokenizer, prompt), [user("Go")]) == rendered(tokenizer, [*prompt, user("Go")], [SCHEMA])
    assert chat.begin(request_for(tokenizer, prompt), ()) == rendered(tokenizer, prompt, [SCHEMA])
    plain = renderer()
    assert plain.begin(request_for(plain.encoder.tokenizer, prompt), ()) == rendered(plain.encoder.tokenizer, prompt)


def test_prompts_of_another_template_are_refused():
    chat = renderer()
    with pytest.raises(ConfigError, match="messages of a prompt were rendered to 1 tokens, .* give a template of your own"):
        chat.begin(RolloutRequest(id="r", prompt=[user("Hi")], prompt_ids=(7,), seeds=(1,)), ())


def test_answers_of_tools_follow_a_call():
    chat = renderer(TOOLS_TEMPLATE, [SCHEMA])
    tokenizer = chat.encoder.tokenizer
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    history = [user("Hi"), assistant("", tool_calls=[call])]
    answers = [{"role": "tool", "name": "add", "content": "3"}, {"role": "tool", "name": "add", "content": "4"}]
    follows = chat.go_on(rendered(tokenizer, history[:1], [SCHEMA]), history, answers)
    expected = "\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(list(follows.ids)) == expected and not follows.anew


@pytest.mark.parametrize(
    ("template", "tools", "expected"),
    [
        (CHAT_TEMPLATE, (), ()),
        (TEMPLATES["chatml"], (), ()),
        (TEMPLATES["llama3"], (), ()),
        (NEEDS_SYSTEM, (), ()),
        (WITHOUT_END, (), ()),
        (TOOLS_TEMPLATE, (SCHEMA,), ()),
        (FORGETS_THINKING, (), ("user",)),
        (FORGETS_THINKING, (SCHEMA,), ("user", "tool")),
    ],
    ids=["tiny", "chatml", "llama3", "system", "no end", "tools", "forgets", "forgets, tools"],
)
def test_templates_that_render_history_otherwise_are_found_out(template, tools, expected):
    assert renderer(template, tools).rewritten == expected


@pytest.mark.parametrize(("template", "hides"), [(CHAT_TEMPLATE, True), (TOOLS_TEMPLATE, False)])
def test_templates_that_do_not_tell_of_tools_are_found_out(template, hides):
    assert renderer(template, [SCHEMA]).hides_tools is hides
    assert not renderer(template).hides_tools


def test_a_template_that_leaves_out_what_is_said_beside_a_call_rewrites_history():
    only_calls = TOOLS_TEMPLATE.replace("{{ message.content }}", "{% if not message.tool_calls %}{{ message.content }}{% endif %}")
    assert renderer(only_calls, [SCHEMA]).rewritten == ("tool",)


def test_a_template_that_takes_no_conversation_renders_each_as_a_whole():
    chat = renderer("{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}{{ messages[0].content }}")
    assert chat.rewritten == ("user",)


def test_a_template_that_ends_turns_without_a_special_token_goes_on_behind_the_end_token():
    chat = renderer(WITHOUT_END)
    tokenizer = chat.encoder.tokenizer
    assert chat.turn_end == (tokenizer.eos_token_id,)
    follows = chat.go_on((), [user("a"), assistant("b")], [user("c")])
    assert tokenizer.decode(list(follows.ids)) == "\nuser: c\nassistant: "


def test_history_without_its_thinking_is_a_row_anew_and_history_that_stays_is_not():
    chat = renderer(FORGETS_THINKING)
    tokenizer = chat.encoder.tokenizer

    def after(said):
        prompt = [user("q")]
        row = (*rendered(tokenizer, prompt), *tokenizer.encode(said, add_special_tokens=False), *chat.turn_end)
        history = [*prompt, assistant(said)]
        return row, [*history, user("more")], chat.go_on(row, history, [user("more")])

    row, messages, follows = after("plain")
    assert not follows.anew and (*row, *follows.ids) == rendered(tokenizer, messages)
    row, messages, follows = after("<think>hm</think>plain")
    assert follows.anew and follows.ids == rendered(tokenizer, messages)
    assert "hm" not in tokenizer.decode(list(follows.ids))


def test_empty_thinking_of_a_last_turn_is_no_change_of_what_the_policy_wrote():
    chat = renderer(THINKS_AT_THE_END)
    assert chat.rewritten == ()
    follows = chat.go_on((), [user("q"), assistant("a")], [user("c")])
    text = "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    assert chat.encoder.tokenizer.decode(list(follows.ids)) == text


def test_messages_that_the_template_refuses_are_named():
    chat = renderer(ALTERNATES)
    tokenizer = chat.encoder.tokenizer
    with pytest.raises(ConfigError, match="a conversation of user, user cannot be rendered: .*roles must alternate"):
        chat.begin(request_for(tokenizer, [user("a")]), [user("b")])


def test_text_is_followed_by_text():
    tokenizer = tiny_tokenizer(add_bos=True)
    text = TextRenderer(Encoder(tokenizer, Layout.ROLLOUT))
    request = RolloutRequest(id="r", prompt="Say: ", prompt_ids=tuple(tokenizer.encode("Say: ")), seeds=(1,))
    assert tokenizer.decode(text.begin(request, [user("now ")])) == "<bos>Say: now "
    follows = text.go_on(request.prompt_ids, [], [user("b"), user("c")])
    assert tokenizer.decode(list(follows.ids)) == "bc" and not follows.anew
    assert text.turn_end == (tokenizer.eos_token_id,)
