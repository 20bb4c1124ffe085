"""Text whose format writes the end of a turn itself: one end, the turn's own where the tokenizer has a token for it."""

from __future__ import annotations

from typing import Any

import pytest

from truing.config.classes import TrainerConfig
from truing.data import prepare_rows
from truing.data.chat_family import ChatFamily, Turn
from truing.data.chat_formats import chat_formats
from truing.data.encode import Encoded, Encoder
from truing.data.example import Example
from truing.errors import RowError
from truing.loss import Layout
from truing.testing import check_dataset_strategy, tiny_tokenizer

END = "<|im_end|>"


def tokenizer_with(end_token: str) -> Any:
    """It knows <|im_end|> as a special token in any case."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token = end_token
    tokenizer.add_special_tokens({"additional_special_tokens": [END]})
    return tokenizer


def responses(tokenizer: Any, *texts: str, **more: Any) -> list[str]:
    (encoded,) = Encoder(tokenizer, Layout.PAIRED).encode([Example(prompt="q", responses=texts, **more)])
    assert isinstance(encoded, Encoded)
    assert all(all(branch.loss_mask) for branch in encoded.tree.branches)
    return [tokenizer.decode(branch.token_ids) for branch in encoded.tree.branches]


@pytest.mark.parametrize("end_token", [END, "<pad>"])
def test_the_turns_end_is_the_only_end_whatever_the_end_token_is(end_token: str) -> None:
    assert responses(tokenizer_with(end_token), f"a{END}", f"b \n{END}", turn_end=END) == [f"a{END}", f"b \n{END}"]


def test_white_space_of_the_format_behind_the_end_is_left_out() -> None:
    assert responses(tokenizer_with("<pad>"), f"a{END}\n", f"b\n{END}\n", turn_end=f"{END}\n") == [f"a{END}", f"b\n{END}"]


def test_a_response_that_does_not_end_as_the_format_does_gets_the_end_token() -> None:
    assert responses(tokenizer_with("<pad>"), f"a{END}", "b", turn_end=END) == [f"a{END}", "b<pad>"]


def test_text_of_other_formats_ends_with_the_end_token_alone() -> None:
    assert responses(tokenizer_with("<pad>"), f"a{END}", "b") == [f"a{END}<pad>", "b<pad>"]
    assert responses(tokenizer_with("<pad>"), "a", "b", add_eos=False, turn_end=END) == ["a", "b"]


def family(name: str = "angle", end: str = "<end>") -> ChatFamily:
    return ChatFamily(name=name, system=Turn("<s:", f"{end}\n"), user=Turn("<u:", f"{end}\n"), assistant=Turn("<a:", f"{end}\n"))


def make(layout: Layout = Layout.PAIRED, **more: Any) -> Any:
    return next(cls for cls in chat_formats(family(**more)) if cls.name.endswith(".intel") and layout in cls.layouts)()


ROWS = [{"question": f"q{number}", "chosen": "a", "rejected": "b"} for number in range(3)]


@pytest.mark.parametrize(("end", "counted"), [("<end>", 3), (END, 0)])
def test_an_end_that_is_no_token_is_text_before_the_end_token_and_counted(end: str, counted: int) -> None:
    tokenizer: Any = tiny_tokenizer()
    trees, report = prepare_rows(
        ROWS,
        make(end=end),
        layout=Layout.PAIRED,
        tokenizer=tokenizer,
        trainer=TrainerConfig(),
        context_length=None,
    )
    note = f"the format ends turns with {end!r}, which this tokenizer has no token for: it is read as text"
    assert dict(report.notes) == ({f"{note}, and the end token follows it": 3} if counted else {})
    assert tokenizer.decode(trees[0].branches[0].token_ids) == ("a<end><|im_end|>" if counted else "a<|im_end|>")


def test_a_family_is_made_of_its_turns() -> None:
    formats = chat_formats(family())
    assert len({(cls.name, layout) for cls in formats for layout in cls.layouts}) == len(formats) == 29
    assert len({cls.__qualname__ for cls in formats}) == 29
    row = {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}
    example = make().parse(row)
    assert (example.prompt, example.responses) == ("<s:s<end>\n<u:q<end>\n<a:", ("a<end>", "b<end>"))
    check_dataset_strategy(make(), [row], [{"question": "q"}])
    assert type(make()).__doc__ == "A question, and two answers as text, in the turns of angle."


def test_families_do_not_share_their_turns() -> None:
    one, other = make(), make(name="other", end="<eot>")
    for _ in range(2):
        assert one.parse(ROWS[0]).responses[0] == "a<end>" and other.parse(ROWS[0]).responses[0] == "a<eot>"


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_a_role_without_a_turn_is_named(role: str) -> None:
    with pytest.raises(
        RowError, match=rf"chosen\[0\] has the role '{role}', and angle has turns for system, user and assistant only"
    ):
        family().read_turns({"chosen": [{"role": role, "content": "x"}]}, "chosen")
