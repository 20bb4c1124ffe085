"""Tokens, end tokens, masks and where a prompt ends."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from truing.data.encode import Encoded, Encoder
from truing.data.example import Example, Text
from truing.errors import ModelError, RowError
from truing.loss import Layout
from truing.testing import tiny_tokenizer

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
SPACED_TEMPLATE = PLAIN_TEMPLATE.replace("assistant:{%", "assistant: {%")


@cache
def merging_tokenizer(*, template: str | None = SPACED_TEMPLATE, bos: bool = True, eos_too: bool = False) -> Any:
    """A byte-level BPE whose merges cross words, so that a token may span the end of a prompt."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), vocab_size=320
    )
    backend.train_from_iterator(["assistant: hello world, user: hello the other world {x} }} {{ \n\n"] * 20, trainer)
    if bos:
        single = "<s> $A </s>" if eos_too else "<s> $A"
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def encode(example: Example, tokenizer: Any, layout: Layout = Layout.PAIRED) -> Encoded:
    (result,) = Encoder(tokenizer, layout).encode([example])
    if isinstance(result, RowError):
        raise result
    return result


def pair(prompt: Text, chosen: Text, rejected: Text, **more: Any) -> Example:
    return Example(prompt=prompt, responses=(chosen, rejected), **more)


def chat(question: str, *answers: str, system: str | None = None) -> Example:
    before = () if system is None else ({"role": "system", "content": system},)
    responses = tuple(({"role": "assistant", "content": answer},) for answer in answers)
    return Example(prompt=(*before, {"role": "user", "content": question}), responses=responses)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


CONTENT = st.text("helo wrd,{}%\n\u00e9\U0001f600<|/s>", min_size=1, max_size=30)


@settings(deadline=None, max_examples=200)
@given(CONTENT, CONTENT, CONTENT, st.booleans())
@case("hello wor", "ld", "k", True)
@case("a</s>", "</s>", "<s>", True)
@case("{{ x }}", "{% y %}", "{}", False)
def test_text_is_tokenised_whole_and_counted_from_the_split(prompt: str, chosen: str, rejected: str, bos: bool) -> None:
    tokenizer = merging_tokenizer(bos=bos)
    encoded = encode(pair(prompt, chosen, rejected), tokenizer)
    tree = encoded.tree
    before = (tokenizer.bos_token_id,) if bos and ids_of(tokenizer, prompt)[:1] != (tokenizer.bos_token_id,) else ()
    rendered = (*before, *ids_of(tokenizer, prompt))
    for branch, response, role in zip(tree.branches, (chosen, rejected), ("chosen", "rejected"), strict=True):
        body = ids_of(tokenizer, prompt + response)
        whole = (*before, *body) if body[: len(before)] != before else body
        end = () if whole[-1] == tokenizer.eos_token_id else (tokenizer.eos_token_id,)
        assert tree.prompt_ids + branch.token_ids == whole + end or encoded.prompt_invented
        assert branch.token_ids[-1] == tokenizer.eos_token_id
        assert all(branch.loss_mask) and branch.role == role
    assert tree.prompt_ids == rendered[: len(tree.prompt_ids)] or encoded.prompt_invented
    assert encoded.prompt_split == (tree.prompt_ids != rendered)
    assert tree.prompt_ids and not tree.prompt_mask


@settings(deadline=None, max_examples=200)
@given(
    CONTENT, CONTENT, CONTENT, st.sampled_from([tiny_tokenizer(), merging_tokenizer(), merging_tokenizer(template=PLAIN_TEMPLATE)])
)
@case("what?", "<|im_end|>", "<|im_end|>\n", tiny_tokenizer())
@case("assistant: the answer", "the answer", "{{ content }}", merging_tokenizer())
def test_messages_are_the_template_and_the_response_is_what_follows(
    question: str, chosen: str, rejected: str, tokenizer: Any
) -> None:
    example = chat(question, chosen, rejected)
    encoded = encode(example, tokenizer)
    for branch, response in zip(encoded.tree.branches, example.responses, strict=True):
        rendered = tokenizer.apply_chat_template([*example.prompt, *response], tokenize=False)
        template_end = "\n" if tokenizer.eos_token == "<|im_end|>" else "\n\n"
        whole = ids_of(tokenizer, rendered.removesuffix(template_end))
        end = () if whole[-1] == tokenizer.eos_token_id else (tokenizer.eos_token_id,)
        assert encoded.tree.prompt_ids + branch.token_ids == whole + end
        assert all(branch.loss_mask)
    if not encoded.prompt_split:
        prompt = tokenizer.apply_chat_template(list(example.prompt), tokenize=False, add_generation_prompt=True)
        assert encoded.tree.prompt_ids == ids_of(tokenizer, prompt)


def test_a_token_across_the_boundary_moves_the_split_and_is_said() -> None:
    """`hello wor` + `ld` holds the token `world`; the prompt then ends before it, and its characters are counted."""
    tokenizer = merging_tokenizer()
    encoded = encode(pair("hello wor", "ld", "k"), tokenizer)
    assert encoded.prompt_split
    chosen = encoded.tree.branches[0]
    assert tokenizer.decode(encoded.tree.prompt_ids + chosen.token_ids) == "<s>hello world</s>"
    assert len(tokenizer.decode(encoded.tree.prompt_ids)) < len("<s>hello wor")
    assert tokenizer.decode(chosen.token_ids).endswith("world</s>")


def test_the_beginning_token_comes_once() -> None:
    tokenizer = merging_tokenizer(bos=True)
    for prompt in ("Q", "<s>Q"):
        assert encode(pair(prompt, "A", "B"), tokenizer).tree.prompt_ids == (0, *ids_of(tokenizer, "Q"))
    template = "<s>" + SPACED_TEMPLATE
    tokenizer = merging_tokenizer(template=template)
    prompt_ids = encode(chat("Q", "a", "b"), tokenizer).tree.prompt_ids
    assert prompt_ids.count(tokenizer.bos_token_id) == 1 and prompt_ids[0] == tokenizer.bos_token_id


def test_an_end_token_that_the_tokenizer_adds_itself_is_not_doubled() -> None:
    tokenizer = merging_tokenizer(eos_too=True)
    tree = encode(pair("Q", "A", "B"), tokenizer).tree
    assert tree.prompt_ids == (0, *ids_of(tokenizer, "Q"))
    assert tree.branches[0].token_ids == (*ids_of(tokenizer, "A"), 1)


def test_padding_equal_to_the_end_token_does_not_uncount_it() -> None:
    tokenizer = merging_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    branch = encode(pair("Q", "A", "B"), tokenizer).tree.branches[0]
    assert branch.token_ids[-1] == tokenizer.eos_token_id and branch.loss_mask[-1]


@pytest.mark.parametrize("chosen", ["A", "A</s>"])
def test_the_end_token_is_added_only_where_it_lacks(chosen: str) -> None:
    tokenizer = merging_tokenizer()
    assert encode(pair("Q", chosen, "B"), tokenizer).tree.branches[0].token_ids == (*ids_of(tokenizer, "A"), 1)


def test_passthrough_text_gets_no_end_token() -> None:
    tokenizer = merging_tokenizer()
    tree = encode(pair("Q", "A", "B", add_eos=False), tokenizer).tree
    assert [branch.token_ids for branch in tree.branches] == [ids_of(tokenizer, "A"), ids_of(tokenizer, "B")]


def test_what_the_template_writes_after_the_turn_is_cut() -> None:
    tokenizer: Any = tiny_tokenizer()
    branch = encode(chat("q", "answer \n", "b"), tokenizer).tree.branches[0]
    assert tokenizer.decode(branch.token_ids) == "answer \n<|im_end|>"
    plain = merging_tokenizer(template=PLAIN_TEMPLATE)
    branch = encode(chat("q", "hello \n", "b"), plain).tree.branches[0]
    assert plain.decode(branch.token_ids).endswith(" hello \n</s>")


def test_a_turn_that_ends_with_another_special_token_stays_as_the_template_ends_it() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token = "<pad>"
    branch = encode(chat("q", "a", "b"), tokenizer).tree.branches[0]
    assert tokenizer.decode(branch.token_ids) == "a<|im_end|>"


def test_a_template_that_insists_on_a_system_turn_is_cut_as_any_other() -> None:
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    example = chat("q", "a", "b", system="s")
    trees = [encode(example, merging_tokenizer(template=before + SPACED_TEMPLATE)).tree for before in ("", strict)]
    assert trees[0] == trees[1]


def test_a_template_that_takes_no_plain_question_still_renders() -> None:
    """The template refuses the conversation that would show how a turn ends, so nothing is cut, and the end token is added."""
    strict = "{% if messages[0].content != 'mine' %}{{ raise_exception('no') }}{% endif %}" + PLAIN_TEMPLATE
    tokenizer = merging_tokenizer(template=strict)
    branch = encode(chat("q", "a", "b", system="mine"), tokenizer).tree.branches[0]
    assert tokenizer.decode(branch.token_ids).endswith(" a\n\n</s>")


def test_tools_reach_the_template() -> None:
    tokenizer = merging_tokenizer(template="{{ tools[0].name if tools else 'none' }}|" + PLAIN_TEMPLATE)
    example = chat("q", "a", "b")
    with_tools = Example(prompt=example.prompt, responses=example.responses, tools=[{"name": "search"}])
    assert tokenizer.decode(encode(with_tools, tokenizer).tree.prompt_ids).startswith("search|")
    assert tokenizer.decode(encode(example, tokenizer).tree.prompt_ids).startswith("none|")


@pytest.mark.parametrize("bos", [True, False])
def test_an_empty_prompt_has_the_beginning_or_end_token_in_it(bos: bool) -> None:
    tokenizer = merging_tokenizer(bos=bos)
    encoded = encode(pair("", "hello", "world", add_eos=False), tokenizer)
    assert encoded.tree.prompt_ids == ((0,) if bos else (1,))
    assert encoded.tree.branches[0].token_ids == ids_of(tokenizer, "hello")
    assert encoded.prompt_invented is not bos and not encoded.prompt_split


def test_the_other_layouts() -> None:
    tokenizer: Any = tiny_tokenizer()
    labeled = encode(Example(prompt="q", responses=("a",), label=False), tokenizer, Layout.LABELED).tree.branches
    assert [(branch.role, branch.label, branch.rank) for branch in labeled] == [("completion", False, None)]
    ranked = encode(Example(prompt="q", responses=("a", "b", "c"), ranks=(0, 0, 1)), tokenizer, Layout.RANKED).tree.branches
    assert [(branch.role, branch.rank) for branch in ranked] == [("completion", 0), ("completion", 0), ("completion", 1)]
    rollout = encode(pair("q", "a", "b", columns={"answer": 1}), tokenizer, Layout.ROLLOUT).tree
    assert rollout.branches == () and rollout.columns == {"answer": 1}
    assert encode(pair("q", "a", "b", margin=0.5), tokenizer).tree.margin == 0.5


def test_many_at_once_is_each_alone() -> None:
    tokenizer = merging_tokenizer()
    bad = pair("q", "\ud800", "b")
    examples = [pair("hello wor", "ld", "k"), bad, chat("q", "a", "b"), pair("x", "y", "z")]
    together = Encoder(tokenizer, Layout.PAIRED).encode(examples)
    assert isinstance(together[1], RowError)
    for example, encoded in zip(examples, together, strict=True):
        if example is not bad:
            assert isinstance(encoded, Encoded) and encoded.tree == encode(example, tokenizer).tree


@pytest.mark.parametrize(
    ("example", "layout", "message"),
    [
        (Example(prompt="q", responses=("a",)), Layout.PAIRED, "the layout PAIRED takes 2 responses, the row gives 1"),
        (Example(prompt="q", responses=("a",), ranks=(0,)), Layout.RANKED, "the layout RANKED takes 2 or more responses"),
        (
            Example(prompt="q", responses=("a", "b"), ranks=(0, 0)),
            Layout.RANKED,
            "two or more different ranks, the row gives (0, 0)",
        ),
        (
            Example(prompt="q", responses=("a", "b")),
            Layout.RANKED,
            "the layout RANKED takes a rank for every response, the row gives None",
        ),
        (Example(prompt="q", responses=("a",)), Layout.LABELED, "the layout LABELED takes a boolean label, the row gives None"),
        (
            pair("q", "a", ({"role": "assistant", "content": "b"},)),
            Layout.PAIRED,
            "must be all text or all messages; the row mixes both",
        ),
        (pair("q", "half \udc00", "b"), Layout.PAIRED, "half of a surrogate pair, U+DC00"),
    ],
)
def test_an_example_that_does_not_fit_is_a_row_error(example: Example, layout: Layout, message: str) -> None:
    with pytest.raises(RowError) as failure:
        encode(example, tiny_tokenizer(), layout)
    assert message in str(failure.value)


def test_what_the_template_refuses_is_a_row_error() -> None:
    tokenizer = merging_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RowError, match="the chat template refuses the messages: roles must alternate"):
        encode(chat("q", "a", "b"), tokenizer)
    tokenizer = merging_tokenizer(template="{{ messages[0].content + 1 }}")
    with pytest.raises(RowError, match="the chat template refuses the messages: "):
        encode(chat("q", "a", "b"), tokenizer)


def test_a_tokenizer_that_cannot_do_it_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"the tokenizer has no chat template; give one as model\.chat_template"):
        encode(chat("q", "a", "b"), merging_tokenizer(template=None))
    with pytest.raises(ModelError, match=r"model\.chat_template is not valid Jinja: .* in line 1"):
        encode(chat("q", "a", "b"), merging_tokenizer(template="{% for %}"))
    endless: Any = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="the tokenizer has no end token, and a response must end with one"):
        encode(pair("q", "a", "b"), endless)
    endless.bos_token = None
    with pytest.raises(ModelError, match="a prompt is empty, and the tokenizer has neither a beginning nor an end token"):
        encode(pair("", "a", "b", add_eos=False), endless)
