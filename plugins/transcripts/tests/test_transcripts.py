r"""`hh_rlhf`: where a transcript's turns begin and end, and which pairs of them can be used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import RowError
from truing.testing import check_dataset_strategy
from truing_transcripts.hh_rlhf import TranscriptPair, TranscriptPrompt, read_transcript

BEFORE = "\n\nHuman: first\n\nAssistant: one\n\nHuman: q"
PAIR = {"chosen": BEFORE + "\n\nAssistant: a", "rejected": BEFORE + "\n\nAssistant: b"}
PROMPT = (
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "q"},
)


def test_a_pair_is_what_both_begin_with_and_the_last_turns():
    example = TranscriptPair().parse({**PAIR, "margin": "0.5", "id": 7})
    assert example.prompt == PROMPT
    assert [response[0] for response in example.responses] == [{"role": "assistant", "content": text} for text in "ab"]
    assert (example.margin, example.columns) == (0.5, {"id": 7})


def test_columns_have_other_names_by_settings():
    strategy = TranscriptPair(field_chosen="good", field_rejected="bad")
    assert strategy.parse({"good": PAIR["chosen"], "bad": PAIR["rejected"]}).prompt == PROMPT


@pytest.mark.parametrize("end", ["", "\n\nAssistant:", "\n\nAssistant: a"])
def test_a_prompt_is_the_transcript_without_an_answer_at_its_end(end):
    assert TranscriptPrompt().parse({"chosen": BEFORE + end, "answer": "4"}).prompt == PROMPT
    assert TranscriptPrompt().parse({**PAIR, "answer": "4"}).columns == {"answer": "4"}


CONTENT = st.text("a: \n\u00e9", max_size=12).filter(lambda text: not text.startswith("\n") and "\n\n" not in text)


@given(st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), CONTENT.map(lambda text: text + ".")), min_size=1, max_size=5))
def test_content_is_what_stands_between_the_marks(turns):
    """Every character of it, line breaks and spaces at its ends too."""
    text = "".join(f"\n\n{who}: {content}" for who, content in turns)
    roles = {"Human": "user", "Assistant": "assistant"}
    expected = tuple({"role": roles[who], "content": content} for who, content in turns)
    assert read_transcript({"chosen": text}, "chosen") == expected


def test_names_within_a_turn_are_no_marks():
    text = "\n\nHuman: Say\nAssistant: hi\n\nand Human: no\n\nAssistant:  hi \n\nHumanity: lost\n"
    assert [message["content"] for message in read_transcript({"chosen": text}, "chosen")] == [
        "Say\nAssistant: hi\n\nand Human: no",
        " hi \n\nHumanity: lost\n",
    ]


def test_a_mark_without_the_space_behind_it_is_a_mark_too():
    assert read_transcript({"chosen": "\n\nHuman:q\n\nAssistant:"}, "chosen") == (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": ""},
    )


def test_the_first_mark_needs_no_line_breaks():
    assert read_transcript({"chosen": "Human: q"}, "chosen") == ({"role": "user", "content": "q"},)


REFUSED = [
    (TranscriptPair, {**PAIR, "chosen": None}, "column 'chosen' is null"),
    (TranscriptPair, {**PAIR, "chosen": 3}, "column 'chosen' must be text, got int 3"),
    (TranscriptPair, {**PAIR, "chosen": " "}, "column 'chosen' is empty"),
    (
        TranscriptPair,
        {**PAIR, "chosen": "a"},
        r"column 'chosen' is no transcript '\n\nHuman: ...\n\nAssistant: ...': it begins 'a'",
    ),
    (TranscriptPair, {**PAIR, "chosen": "Hi" + PAIR["chosen"]}, "column 'chosen' is no transcript"),
    (TranscriptPair, {**PAIR, "chosen": BEFORE + "\n\nAssistant:"}, "the last message of column 'chosen' is empty"),
    (TranscriptPair, {**PAIR, "rejected": BEFORE + "\n\nAssistant: \n"}, "the last message of column 'rejected' is empty"),
    (TranscriptPair, {**PAIR, "chosen": BEFORE}, "the last message of column 'chosen' must be the assistant's, got role 'user'"),
    (TranscriptPair, {**PAIR, "rejected": PAIR["chosen"]}, "chosen equals rejected"),
    (
        TranscriptPair,
        {**PAIR, "rejected": PAIR["rejected"].replace("first", "other")},
        "chosen and rejected must be the same messages up to the last one",
    ),
    (TranscriptPair, {**PAIR, "rejected": PAIR["rejected"] + "\n\nHuman: r\n\nAssistant: c"}, "must be the same messages"),
    (TranscriptPair, {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "there is nothing to answer"),
    (TranscriptPrompt, {"chosen": "\n\nAssistant: a"}, "column 'chosen' has no turn of Human before the last of Assistant"),
    (TranscriptPrompt, {"chosen": PAIR["chosen"] + "\n\nAssistant: b"}, "there is nothing to answer"),
]


@pytest.mark.parametrize(("strategy", "row", "message"), REFUSED)
def test_a_bad_row_is_refused_with_column_value_and_remedy(strategy, row, message):
    with pytest.raises(RowError) as failure:
        strategy().parse(row)
    assert message in str(failure.value)


@pytest.mark.parametrize("cls", [TranscriptPair, TranscriptPrompt])
def test_the_formats_keep_their_promises(cls):
    check_dataset_strategy(cls, [PAIR], [{}, {"chosen": "a", "rejected": "b"}])


def test_only_transcripts_are_recognised():
    for cls in (TranscriptPair, TranscriptPrompt):
        assert cls.recognises(PAIR)
        assert not cls.recognises({**PAIR, "prompt": "q"})
        assert not cls.recognises({"chosen": "a", "rejected": "b"})
        assert not cls.recognises({"chosen": ["\n\nHuman:"], "rejected": None})
