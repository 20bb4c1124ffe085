"""Prompts and responses end exactly where the model's own chat template says, for templates of the shapes that models have."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from truing.data.encode import Encoded, Encoder
from truing.data.example import Example, Message
from truing.data.templates import find_template
from truing.errors import ModelError, RowError
from truing.loss import Layout
from truing.testing import tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<bos>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<bos>{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn first') }}{% endif %}" + CHATML
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "</s>", "<start_of_turn>", "<end_of_turn>", "<eos>"]


@attrs.frozen
class Shape:
    """A template, the tokenizer's end token, and what the two make of a question and an answer."""

    template: str
    eos: str
    prompt: str
    """With {q} for the question."""
    response: str
    """With {a} for the answer."""
    trims: bool = False
    system: bool = False


SHAPES = {
    "chatml": Shape(CHATML, "<|im_end|>", "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", "{a}<|im_end|>"),
    "chatml, another end token": Shape(CHATML, "</s>", "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", "{a}<|im_end|>"),
    "llama3": Shape(
        LLAMA3,
        "<|eot_id|>",
        "<bos><|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{a}<|eot_id|>",
        trims=True,
    ),
    "mistral": Shape(MISTRAL, "</s>", "<bos>[INST] {q} [/INST]", " {a}</s>"),
    "gemma": Shape(
        GEMMA,
        "<eos>",
        "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
        "{a}<end_of_turn>",
        trims=True,
    ),
    "a system turn is due": Shape(
        STRICT,
        "<|im_end|>",
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
        "{a}<|im_end|>",
        system=True,
    ),
    "a system turn of its own": Shape(
        DEFAULT_SYSTEM,
        "<|im_end|>",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
        "{a}<|im_end|>",
    ),
    "the last turn thinks": Shape(
        THINKING, "<|im_end|>", "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\n{a}<|im_end|>"
    ),
    "no end": Shape(NO_END, "</s>", "### user:\n{q}\n\n### assistant:\n", "{a}</s>"),
}
CONTENTS = ["4", "assistant", "user\n", " it is 4 ", "\n\n", "### assistant:\n", "q", "{{ messages }}", "4\n"]
"""Answers that occur in the templates, and ones with white space at their ends."""


def tokenizer_of(shape: Shape) -> Any:
    tokenizer = tiny_tokenizer(add_bos=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", *SPECIAL]})
    tokenizer.eos_token, tokenizer.chat_template = shape.eos, shape.template
    return tokenizer


def encode(shape: Shape, question: str, *answers: str) -> Encoded:
    messages: list[Message] = [{"role": "system", "content": "s"}] if shape.system else []
    messages.append({"role": "user", "content": question})
    responses = tuple(({"role": "assistant", "content": answer},) for answer in answers)
    (encoded,) = Encoder(tokenizer_of(shape), Layout.SINGLE).encode([Example(prompt=messages, responses=responses)])
    if isinstance(encoded, RowError):
        raise encoded
    return encoded


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_prompt_and_response_are_cut_where_the_template_cuts_them(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    for answer in CONTENTS:
        tree = encode(shape, "assistant", answer).tree
        written = answer.strip() if shape.trims else answer
        assert tokenizer.decode(list(tree.prompt_ids)) == shape.prompt.format(q="assistant")
        assert tokenizer.decode(list(tree.branches[0].token_ids)) == shape.response.replace("{a}", written)
        assert all(tree.branches[0].loss_mask)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_end_is_there_once(shape: Shape) -> None:
    tokenizer = tokenizer_of(shape)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", *SPECIAL)}
    for branch in encode(shape, "q", *CONTENTS).tree.branches:
        assert branch.token_ids[-1] in ends
        assert sum(token in ends for token in branch.token_ids) == 1


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "user", "content": "r"}]
    example = Example(prompt=messages, responses=(({"role": "assistant", "content": "a"},),))
    (refused,) = Encoder(tokenizer_of(SHAPES["mistral"]), Layout.SINGLE).encode([example])
    assert "the chat template refuses the messages: roles must alternate" in str(refused)


def test_a_template_that_trims_makes_answers_of_the_same_tokens() -> None:
    """Which the report counts as a pair that says nothing."""
    branches = encode(SHAPES["gemma"], "q", "4", " 4\n").tree.branches
    assert branches[0].token_ids == branches[1].token_ids


@pytest.mark.parametrize(("name", "like"), [("chatml", "chatml"), ("llama3", "llama3")])
def test_a_format_may_have_a_template_of_its_own(name: str, like: str) -> None:
    """Each text is rendered and ended by its own, also where the tokenizer has another template, or none."""
    example = Example(
        prompt=({"role": "user", "content": "q"},),
        responses=(({"role": "assistant", "content": "4\n"},),),
        chat_template=find_template(name),
    )
    plain = attrs.evolve(example, chat_template=None)
    for other in ("mistral", "no end"):
        tokenizer = tokenizer_of(SHAPES[other])
        own, models = Encoder(tokenizer, Layout.SINGLE).encode([example, plain])
        assert isinstance(own, Encoded) and isinstance(models, Encoded)
        assert tokenizer.decode(list(own.tree.prompt_ids)) == SHAPES[like].prompt.format(q="q")
        assert tokenizer.decode(list(own.tree.branches[0].token_ids)) == SHAPES[like].response.replace("{a}", "4\n")
        assert tokenizer.decode(list(models.tree.prompt_ids)) == SHAPES[other].prompt.format(q="q")
        assert tokenizer.decode(list(models.tree.branches[0].token_ids)) == SHAPES[other].response.replace("{a}", "4\n")


def test_a_template_by_name_takes_text_only() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    example = Example(prompt=({"role": "user", "content": "q"},), responses=((call,),), chat_template=find_template("chatml"))
    (refused,) = Encoder(tiny_tokenizer(), Layout.SINGLE).encode([example])
    assert "this template writes text only, and a message has none" in str(refused)


def test_a_template_of_a_format_that_is_no_jinja_is_said_to_be_its() -> None:
    example = Example(prompt=({"role": "user", "content": "q"},), responses=(), chat_template="{% for %}")
    with pytest.raises(ModelError, match=r"the format's chat_template is not valid Jinja: .* in line 1"):
        Encoder(tiny_tokenizer(), Layout.ROLLOUT).encode([example])


def test_templates_are_found_by_name() -> None:
    assert find_template(None) is None and find_template("{{ x }}") == "{{ x }}"
    with pytest.raises(ValueError, match="chat_template is 'lama3'; did you mean 'llama3'"):
        find_template("lama3")
