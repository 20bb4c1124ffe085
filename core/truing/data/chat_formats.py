"""The formats of a chat family: what each reads is the same for all families, and what it writes is the family's markup.

| format | prompt | responses of a pair |
|---|---|---|
| `family`, `family.default` | system?, prompt or input or question or instruction | chosen(_response), rejected(_response) |
| `family.argilla` | system?, instruction | chosen_response, rejected_response |
| `family.icr` | system?, input | chosen, rejected |
| `family.intel` | system?, question | chosen, rejected |
| `family.prompt_pairs` | system?, prompt | chosen, rejected |
| `family.ultra` | system?, prompt | the last assistant messages of chosen and of rejected |
| `family.argilla_chat` | the messages of chosen but its last | the last messages of chosen and of rejected |

The formats for labels read the columns completion and label instead of a pair's; those for single responses read completion, or a
pair's better one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import attrs

from truing.data import columns as col
from truing.data.chat_family import ChatFamily
from truing.data.example import DatasetStrategy, Example, Text
from truing.errors import RowError
from truing.loss import Layout
from truing.settings import setting

Columns: TypeAlias = str | tuple[str, ...]
"""One column, or several of which a row has one."""


class _Written(DatasetStrategy):
    """A format of a family."""

    family: ClassVar[ChatFamily]

    def _example(self, prompt: str, *responses: str, **more: Any) -> Example:
        written = tuple(map(self.family.write_response, responses))
        return Example(prompt=prompt, responses=written, turn_end=self.family.end, **more)

    def write(self, prompt: Text, answers: Sequence[str]) -> Example:
        """Return a prompt and answers of another format in the family's markup; text that is in it already is unchanged."""
        return self._example(self.family.write_question(prompt), *answers)

    def _pair(self, prompt: str, sides: tuple[str, str], names: tuple[str, str], **more: Any) -> Example:
        example = self._example(prompt, *sides, **more)
        chosen, rejected = example.responses
        col.check_differ(chosen, rejected, names)
        return example

    def _read_answer(self, row: Mapping[str, Any], column: str, before: str) -> tuple[str, str]:
        """Return prompt and response of a conversation, of which the column `before` may hold all but the response."""
        conversation = col.check_conversation(self.family.read_turns(row, column), column)
        turns, reply = conversation[:-1], conversation[-1]
        if before != column and row.get(before) is not None:
            asked = col.without_answer(self.family.read_turns(row, before))
            if turns and turns != asked:
                raise RowError(f"{before} and {column} differ in the messages before the response; give them in one of the columns")
            turns = asked
        prompt = self.family.write_prompt(col.check_answerable(turns, f"{before} and {column} together"))
        return prompt, reply["content"]


@attrs.frozen(kw_only=True)
class _Question(_Written):
    """A format with a system turn and one user turn, each a column of text."""

    field_prompt: Columns = setting("prompt", help="Column of the user's turn; of several, the first that the row has.")
    field_system: str = setting("system", help="Column of the system turn; there is none where this is missing, null or empty.")

    def _read_prompt(self, row: Mapping[str, Any]) -> tuple[str, tuple[str, str], tuple[str, ...]]:
        """Return the prompt, the columns that it is from, and notes."""
        column, notes = col.first_present(row, self.field_prompt)
        user, system = col.read_string(row, column), col.read_optional(row, self.field_system)
        messages = ({"role": "system", "content": system}, {"role": "user", "content": user})
        return self.family.write_prompt(messages), (column, self.field_system), notes


@attrs.frozen(kw_only=True)
class _QuestionPair(_Question):
    """A question, and two answers as text"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: Columns = setting("chosen", help="Column of the better response; of several, the first that the row has.")
    field_rejected: Columns = setting("rejected", help="Column of the worse response; of several, the first that the row has.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        prompt, asked, notes = self._read_prompt(row)
        chosen, good, more = self._read_side(row, self.field_chosen)
        rejected, bad, still_more = self._read_side(row, self.field_rejected)
        return self._pair(
            prompt,
            (good, bad),
            (chosen, rejected),
            margin=col.read_margin(row),
            columns=col.others(row, *asked, chosen, rejected, "margin"),
            notes=(*notes, *more, *still_more),
        )

    def _read_side(self, row: Mapping[str, Any], columns: Columns) -> tuple[str, str, tuple[str, ...]]:
        """Return the first of some columns that the row has, the response in it, and notes."""
        column, notes = col.first_present(row, columns)
        response, more = self._read_response(row, column)
        return column, response, (*notes, *more)

    def _read_response(self, row: Mapping[str, Any], column: str) -> tuple[str, tuple[str, ...]]:
        return col.read_string(row, column), ()


@attrs.frozen(kw_only=True)
class _LastAssistantPair(_QuestionPair):
    """A question, and two conversations of which the last assistant message is the answer"""

    def _read_response(self, row: Mapping[str, Any], column: str) -> tuple[str, tuple[str, ...]]:
        if isinstance(row[column], str):
            return super()._read_response(row, column)
        turns = self.family.read_turns(row, column)
        answers = [index for index, message in enumerate(turns) if message["role"] == "assistant"]
        if not answers:
            raise RowError(f"column {column!r} has no assistant message, and the last of them is the response")
        others = [(turn["role"], turn["content"]) for index, turn in enumerate(turns) if index != answers[-1]]
        system = ("system", col.read_optional(row, self.field_system))
        user = ("user", row[col.first_present(row, self.field_prompt)[0]])
        repeated = others in ([], [user], [system, user]) and answers[-1] == len(turns) - 1
        note = f"row(s) of which only the last assistant message of {column!r} is read: the others are not the prompt's"
        return col.check_string(turns[answers[-1]]["content"], column), () if repeated else (note,)


@attrs.frozen(kw_only=True)
class _QuestionAlone(_QuestionPair):
    """A question; the columns of a pair's answers need not be there"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        prompt, asked, notes = self._read_prompt(row)
        answers = (*_names(self.field_chosen), *_names(self.field_rejected))
        return self._example(prompt, columns=col.others(row, *asked, *answers, "margin"), notes=notes)


@attrs.frozen(kw_only=True)
class _QuestionAnswer(_QuestionPair):
    """A question and an answer as text, or the better one of a pair"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE})
    field_completion: str = setting("completion", help="Column of the response; where it is missing or null, the better one's.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt and its response."""
        prompt, asked, notes = self._read_prompt(row)
        answers = (self.field_completion, *_names(self.field_chosen))
        _, response, more = self._read_side(row, answers)
        extra = col.others(row, *asked, *answers, *_names(self.field_rejected), "margin")
        return self._example(prompt, response, columns=extra, notes=(*notes, *more))


@attrs.frozen(kw_only=True)
class _LastAssistantAnswer(_QuestionAnswer, _LastAssistantPair):
    """A question and an answer as text, or the last assistant message of the better one of two conversations"""


@attrs.frozen(kw_only=True)
class _QuestionLabel(_Question):
    """A question, an answer as text, and whether the answer is desirable"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})
    field_completion: str = setting("completion", help="Column of the response.")
    field_label: str = setting("label", help="Column that says whether the response is desirable: true or false.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the labelled response."""
        prompt, asked, notes = self._read_prompt(row)
        completion = col.read_string(row, self.field_completion)
        label, more = col.read_label(row, self.field_label)
        extra = col.others(row, *asked, self.field_completion, self.field_label)
        return self._example(prompt, completion, label=label, columns=extra, notes=(*notes, *more))


@attrs.frozen(kw_only=True)
class _ChatPair(_Written):
    """Two conversations that differ in their last message"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: str = setting("chosen", help="Column of the conversation with the better response.")
    field_rejected: str = setting("rejected", help="Column of the conversation with the worse response.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        names = self.field_chosen, self.field_rejected
        chosen, rejected = (self.family.read_turns(row, name) for name in names)
        prompt, good, bad = col.split_pair(chosen, rejected, names)
        return self._pair(
            self.family.write_prompt(prompt),
            (good[0]["content"], bad[0]["content"]),
            names,
            margin=col.read_margin(row),
            columns=col.others(row, *names, "margin"),
        )


@attrs.frozen(kw_only=True)
class _ChatAlone(_ChatPair):
    """The conversation before an answer, of which only that of the better one need be there"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        asked = col.without_answer(self.family.read_turns(row, self.field_chosen))
        prompt = self.family.write_prompt(col.check_answerable(asked, f"column {self.field_chosen!r}"))
        return self._example(prompt, columns=col.others(row, self.field_chosen, self.field_rejected, "margin"))


@attrs.frozen(kw_only=True)
class _ChatAnswer(_ChatPair):
    """A conversation of which the last message is the answer, in one column or in two"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE})
    field_completion: str = setting(
        "completion",
        help="Column of the assistant's message, or of the whole conversation; where it is missing or null, the better one's.",
    )

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt and its response."""
        column = self.field_chosen if row.get(self.field_completion) is None else self.field_completion
        extra = col.others(row, self.field_chosen, self.field_completion, self.field_rejected, "margin")
        return self._example(*self._read_answer(row, column, self.field_chosen), columns=extra)


@attrs.frozen(kw_only=True)
class _ChatLabel(_Written):
    """A conversation of which the last message is the answer, in one column or in two, and whether that is desirable"""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})
    field_chosen: str = setting("chosen", help="Column of the messages before the response; it may be missing or null.")
    field_completion: str = setting("completion", help="Column of the assistant's message, or of the whole conversation.")
    field_label: str = setting("label", help="Column that says whether the response is desirable: true or false.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the labelled response."""
        prompt, completion = self._read_answer(row, self.field_completion, self.field_chosen)
        label, notes = col.read_label(row, self.field_label)
        extra = col.others(row, self.field_chosen, self.field_completion, self.field_label)
        return self._example(prompt, completion, label=label, columns=extra, notes=notes)


def _names(columns: Columns) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns


_QUESTION: tuple[type[Any], ...] = (_QuestionPair, _QuestionAlone, _QuestionAnswer)
_ANY_COLUMN = {
    "field_prompt": ("prompt", "input", "question", "instruction"),
    "field_chosen": ("chosen", "chosen_response"),
    "field_rejected": ("rejected", "rejected_response"),
}
_ARGILLA = {"field_prompt": "instruction", "field_chosen": "chosen_response", "field_rejected": "rejected_response"}
_FORMATS: Mapping[str, tuple[tuple[type[Any], ...], Mapping[str, Columns]]] = {
    "": (_QUESTION, _ANY_COLUMN),
    ".default": (_QUESTION, _ANY_COLUMN),
    ".argilla": ((*_QUESTION, _QuestionLabel), _ARGILLA),
    ".icr": (_QUESTION, {"field_prompt": "input"}),
    ".intel": ((*_QUESTION, _QuestionLabel), {"field_prompt": "question"}),
    ".prompt_pairs": ((*_QUESTION, _QuestionLabel), {}),
    ".ultra": ((_LastAssistantPair, _QuestionAlone, _LastAssistantAnswer, _QuestionLabel), {}),
    ".argilla_chat": ((_ChatPair, _ChatAlone, _ChatAnswer, _ChatLabel), {}),
}
"""What a format's name ends with: its classes, one for each layout, and the columns that are not the classes' defaults."""


def chat_formats(family: ChatFamily) -> list[type[DatasetStrategy]]:
    """Return the formats of a family, to be registered by its plugin: a class for each name and layout."""
    return [
        _make(base, family, ending, {field: default for field, default in columns.items() if field in attrs.fields_dict(base)})
        for ending, (bases, columns) in _FORMATS.items()
        for base in bases
    ]


def _make(base: type[Any], family: ChatFamily, ending: str, columns: Mapping[str, Columns]) -> type[DatasetStrategy]:
    """Return a subclass for one name, with its columns as the defaults of its settings."""
    fields = attrs.fields_dict(base)
    name = family.name + ending
    body = {
        "__module__": __name__,
        "__doc__": f"{base.__doc__}, in the turns of {family.name}.",
        "__annotations__": dict.fromkeys(columns, Columns),
        "name": name,
        "family": family,
        **{field: setting(default, help=fields[field].metadata["help"]) for field, default in columns.items()},
    }
    words = "".join(word.title() for word in re.split(r"[._]", name))
    made: type[DatasetStrategy] = attrs.frozen(kw_only=True)(type(f"{words}{base.__name__.removeprefix('_')}", (base,), body))
    return made
