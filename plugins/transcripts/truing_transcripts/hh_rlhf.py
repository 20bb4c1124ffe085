r"""`hh_rlhf`: transcripts as text, `\n\nHuman: ...\n\nAssistant: ...` (Bai et al. 2022, arXiv:2204.05862)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import DatasetStrategy, Example, Layout, RowError, setting
from truing.data import columns as col
from truing.data.example import Message

_MARK = re.compile(r"(?:\A\n{0,2}|\n\n)(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_transcript(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    r"""Return the turns of a transcript as messages; what stands between `\n\nHuman: ` and the next such mark is unchanged.

    Raises RowError where it is no text, or does not begin with a turn.
    """
    text = col.read_string(row, column)
    marks = list(_MARK.finditer(text))
    if not marks or marks[0].start() != 0:
        raise RowError(rf"column {column!r} is no transcript '\n\nHuman: ...\n\nAssistant: ...': it begins {col.shorten(text)}")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple({"role": _ROLES[mark[1]], "content": text[mark.end() : end]} for mark, end in zip(marks, ends, strict=True))


@attrs.frozen(kw_only=True)
class TranscriptPair(DatasetStrategy):
    """Columns chosen and rejected, transcripts of Human and Assistant that differ in the assistant's last turn."""

    name: ClassVar[str] = "hh_rlhf"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: str = setting("chosen", help="Column of the transcript with the better answer.")
    field_rejected: str = setting("rejected", help="Column of the transcript with the worse answer.")

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has two transcripts, and no prompt beside them."""
        return row.get("prompt") is None and all(_is_transcript(row.get(column)) for column in ("chosen", "rejected"))

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        names = self.field_chosen, self.field_rejected
        sides = read_transcript(row, self.field_chosen), read_transcript(row, self.field_rejected)
        prompt, chosen, rejected = col.split_pair(*sides, names)
        extra = col.others(row, *names, "margin")
        return Example(prompt=prompt, responses=(chosen, rejected), margin=col.read_margin(row), columns=extra)


@attrs.frozen(kw_only=True)
class TranscriptPrompt(TranscriptPair):
    """Column chosen, a transcript of Human and Assistant, without an assistant's turn at its end."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has a transcript, and no prompt beside it."""
        return row.get("prompt") is None and _is_transcript(row.get("chosen"))

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        messages = read_transcript(row, self.field_chosen)
        prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if not prompt or prompt[-1]["role"] == "assistant":
            raise RowError(
                f"column {self.field_chosen!r} has no turn of Human before the last of Assistant: there is nothing to answer"
            )
        return Example(prompt=prompt, columns=col.others(row, self.field_chosen, self.field_rejected, "margin"))


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")
