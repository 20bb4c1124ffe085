"""Prompts and responses end exactly where the model's own chat template says, for templates of the shapes that models have."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from truing.data.encode import Encoded, Encoder
from truing.data.example import Example, Message
from truing.errors import RowError
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
