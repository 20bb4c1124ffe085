"""Prompt tokens that a method counts: which they are, from the row to the loss."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_data_encode import PLAIN_TEMPLATE, SPACED_TEMPLATE, ids_of, merging_tokenizer
from truing import Layout, Loss, LossInputs, LossOutput, Needs, PluginError, RowError, Term
from truing.config.classes import TrainerConfig
from truing.data import prepare_rows
from truing.data.encode import Encoder
from truing.data.example import Example
from truing.data.strategies import Preference
from truing.data.tree import PromptTree
from truing.declared import prompt_tokens_of
from truing.errors import ModelError
from truing.reduce import StepCounts
from truing.registry.contract import check_class
from truing.testing import check_loss, tiny_tokenizer

ROLES = ("system", "user", "assistant", "tool")


def conversation(*turns: tuple[str, str], answers: tuple[str, ...] = ("a", "b"), tools: Any = None) -> Example:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Example(prompt=messages, responses=tuple(({"role": "assistant", "content": text},) for text in answers), tools=tools)


def tree_of(example: Example, prompt_tokens: Any, tokenizer: Any = None) -> PromptTree:
    (result,) = Encoder(tokenizer or tiny_tokenizer(), Layout.PAIRED, prompt_tokens).encode([example])
    if isinstance(result, RowError):
        raise result
    return result.tree


def counted_text(tree: PromptTree, tokenizer: Any) -> str:
    return tokenizer.decode([token for token, counted in zip(tree.prompt_ids, tree.prompt_mask, strict=True) if counted])


TEXT = st.text("ab \n<|é😀{}", min_size=1, max_size=8).filter(str.strip)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(ROLES), TEXT), max_size=5), TEXT)
def test_earlier_turns_are_counted_as_the_last_one_is(turns: list[tuple[str, str]], question: str) -> None:
    """Each with the token that ends it, and without the line break behind that: what the same turn is as a response."""
    tokenizer: Any = tiny_tokenizer()
    tree = tree_of(conversation(*turns, ("user", question)), "assistant", tokenizer)
    written = [content + "<|im_end|>" for role, content in turns if role == "assistant"]
    assert bool(tree.prompt_mask) == bool(written)
    if written:
        assert counted_text(tree, tokenizer) == "".join(written)


def test_a_turn_has_the_tokens_that_it_has_as_a_response() -> None:
    tokenizer: Any = tiny_tokenizer()
    last = tree_of(conversation(("user", "q"), answers=("hello", "b")), "none", tokenizer).branches[0]
    earlier = tree_of(conversation(("user", "q"), ("assistant", "hello"), ("user", "r")), "assistant", tokenizer)
    counted = [token for token, mask in zip(earlier.prompt_ids, earlier.prompt_mask, strict=True) if mask]
    assert tuple(counted) == last.token_ids


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, SPACED_TEMPLATE])
def test_a_token_that_holds_a_character_of_a_turn_is_counted(template: str) -> None:
    """The tokenizer has a token of `: hello`, which begins before the turn."""
    tokenizer = merging_tokenizer(template=template)
    tree = tree_of(conversation(("user", "hello"), ("assistant", "hello"), ("user", "world")), "assistant", tokenizer)
    assert counted_text(tree, tokenizer) == ": hello"


def test_a_conversation_that_the_assistant_begins() -> None:
    tokenizer: Any = tiny_tokenizer()
    tree = tree_of(conversation(("assistant", "welcome"), ("user", "q")), "assistant", tokenizer)
    assert counted_text(tree, tokenizer) == "welcome<|im_end|>"


def test_all_is_every_token_that_something_predicts() -> None:
    tokenizer: Any = tiny_tokenizer(add_bos=True)
    tree = tree_of(Example(prompt="abc", responses=("d", "e")), "all", tokenizer)
    assert tree.prompt_mask == (False, True, True, True) and tree.counted_in_prompt == 3
    counts = StepCounts.of([[tree]], Layout.PAIRED)
    assert (counts.token, counts.chosen_token) == (3 + 2 + 2, 3 + 2)


def test_text_has_no_turns_and_a_prompt_of_one_token_nothing_to_count() -> None:
    assert tree_of(Example(prompt="abc", responses=("d", "e")), "assistant").prompt_mask == ()
    assert tree_of(Example(prompt="", responses=("d", "e")), "all").prompt_mask == ()


def test_a_prompt_that_is_split_earlier_keeps_its_mask() -> None:
    """`hello wor` + `ld` holds the token `world`: the branch begins before it, and every token is counted once."""
    tokenizer = merging_tokenizer()
    tree = tree_of(Example(prompt="hello wor", responses=("ld", "k")), "all", tokenizer)
    assert len(tree.prompt_mask) == len(tree.prompt_ids) < 1 + len(ids_of(tokenizer, "hello wor"))
    assert tree.counted_in_prompt == len(tree.prompt_ids) - 1


def test_tools_are_rendered_with_every_turn() -> None:
    tokenizer = merging_tokenizer(template="{{ tools[0].name if tools else 'none' }}|" + SPACED_TEMPLATE)
    example = conversation(("user", "q"), ("assistant", "world"), ("user", "r"), tools=[{"name": "search"}])
    assert counted_text(tree_of(example, "assistant", tokenizer), tokenizer).strip() == "world"


DROPS_THINKING = (
    "{% for m in messages %}{{ m.role }}: "
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_that_rewrites_history_is_a_row_error() -> None:
    tokenizer = merging_tokenizer(template=DROPS_THINKING)
    kept = conversation(("user", "q"), ("assistant", "plain"), ("user", "r"))
    assert counted_text(tree_of(kept, "assistant", tokenizer), tokenizer).strip() == "plain"
    rewritten = conversation(("user", "q"), ("assistant", "<think>x</think>y"), ("user", "r"))
    with pytest.raises(RowError) as failure:
        tree_of(rewritten, "assistant", tokenizer)
    assert str(failure.value) == (
        "which tokens of message 1 are the assistant's cannot be told: the chat template renders it otherwise here than when it "
        "was the last (some drop earlier thinking); count the last turn only, make a row of each turn, or give a "
        "model.chat_template that renders every turn alike"
    )
    assert tree_of(rewritten, "none", tokenizer).branches


def test_a_template_that_takes_no_part_of_a_conversation_is_a_row_error() -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with a user') }}{% endif %}"
    tokenizer = merging_tokenizer(
        template="{% if messages | length < 3 %}{{ messages[0].role.lost.it }}{% endif %}" + PLAIN_TEMPLATE
    )
    with pytest.raises(RowError, match=r"of message 1 are the assistant's cannot be told: the chat template refuses .*; count the"):
        tree_of(conversation(("user", "q"), ("assistant", "a"), ("user", "r")), "assistant", tokenizer)
    with pytest.raises(RowError, match="the chat template refuses the messages: begin with a user"):
        tree_of(conversation(("assistant", "a"), ("user", "r")), "assistant", merging_tokenizer(template=strict + PLAIN_TEMPLATE))


def test_a_tokenizer_without_offsets_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = tiny_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match=r"cannot say which characters a token stands for; use one that has a tokenizer\.json"):
        tree_of(conversation(("user", "q"), ("assistant", "a"), ("user", "r")), "assistant", tokenizer)


def test_a_truncated_prompt_keeps_the_mask_of_what_is_left() -> None:
    """`<bos>abcdef` cut to 4 tokens is `<bos>def`; without a beginning token `cdef`, of which nothing predicts the first."""
    for bos, kept in ((True, "<bos>def"), (False, "cdef")):
        tokenizer: Any = tiny_tokenizer(add_bos=bos)
        rows = [{"prompt": "abcdef", "chosen": "a", "rejected": "b"}]
        dataset, report = prepare_rows(
            rows,
            Preference(),
            layout=Layout.PAIRED,
            tokenizer=tokenizer,
            trainer=TrainerConfig(max_prompt_length=4),
            context_length=None,
            prompt_tokens="all",
        )
        tree = dataset[0]
        assert report.prompts_truncated == 1
        assert tokenizer.decode(tree.prompt_ids) == kept and tree.prompt_mask == (False, True, True, True)


def test_what_is_counted_is_in_the_fingerprint() -> None:
    found = set()
    for prompt_tokens in ("none", "all"):
        dataset, _ = prepare_rows(
            [{"prompt": "abc", "chosen": "a", "rejected": "b"}],
            Preference(),
            layout=Layout.PAIRED,
            tokenizer=tiny_tokenizer(),
            trainer=TrainerConfig(),
            context_length=None,
            prompt_tokens=prompt_tokens,
        )
        found.add(dataset.fingerprint)
    assert len(found) == 2


@attrs.frozen(kw_only=True)
class Plain(Loss):
    name: ClassVar[str] = "plain"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.NOTHING

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput([Term(-inputs.chosen.token_logps, "chosen_token")])


@attrs.frozen(kw_only=True)
class OverPrompts(Plain):
    needs: ClassVar[Needs] = Needs.PROMPT_LOGPS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.prompt_token_logps is not None
        return LossOutput([Term(-inputs.prompt_token_logps, "chosen_token")])


@attrs.frozen(kw_only=True)
class OverTurns(OverPrompts):
    prompt_tokens: ClassVar[str] = "assistant"


@attrs.frozen(kw_only=True)
class Misspelt(OverPrompts):
    prompt_tokens: ClassVar[str] = "asistant"


@attrs.frozen(kw_only=True)
class Unread(Plain):
    prompt_tokens: ClassVar[str] = "all"


@attrs.frozen(kw_only=True)
class Uncounted(OverPrompts):
    prompt_tokens: ClassVar[str] = "none"


def test_needs_say_which_tokens_are_counted_unless_the_method_does() -> None:
    assert [prompt_tokens_of(loss()) for loss in (Plain, OverPrompts, OverTurns)] == ["none", "all", "assistant"]
    for loss in (Plain, OverPrompts, OverTurns):
        check_loss(loss)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (Misspelt, "`prompt_tokens` is 'asistant'; it must be one of none, assistant, all"),
        (Unread, r"`prompt_tokens` of plain is 'all', and its `needs` does not name Needs\.PROMPT_LOGPS; a method reads"),
        (Uncounted, r"`prompt_tokens` of plain is 'none', and its `needs` names Needs\.PROMPT_LOGPS; a method reads"),
    ],
)
def test_what_contradicts_itself_is_refused(loss: Any, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        check_class("loss", loss)
    with pytest.raises(PluginError, match=says):
        prompt_tokens_of(loss())
    with pytest.raises(AssertionError, match=says):
        check_loss(loss)
