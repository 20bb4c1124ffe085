"""Formats of conversations in a column, for plugins to name: messages that the model's own chat template renders.

| class | layout | reads |
|---|---|---|
| `ConversationPair` | PAIRED | the conversation, and its two answers in columns of their own |
| `ConversationAnswer` | SINGLE | the conversation, of which the last message is the answer |
| `ConversationLabel` | LABELED | the same, and a label |
| `ConversationPrompt` | ROLLOUT | the conversation; an answer at its end is left out |
| `WholePair` | PAIRED | two conversations that differ in their last message |
| `WholePrompt` | ROLLOUT | the better one of these but its last message |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import attrs

from truing.data import columns as col
from truing.data.example import DatasetStrategy, Example, Message, Text
from truing.data.spelling import Spelling
from truing.data.templates import find_template
from truing.errors import RowError
from truing.loss import Layout
from truing.settings import setting


@attrs.frozen(kw_only=True)
class SpelledBase(DatasetStrategy):
    """A format whose messages may have other keys and roles than ours."""

    field_system: str = setting("system", help="Column with a system turn, put first; it may be missing, null or empty.")
    message_property_mappings: Mapping[str, str] = setting(
        factory=dict, help="The data's names of a message's keys, by our own: {role: from, content: value}."
    )
    roles: Mapping[str, tuple[str, ...]] = setting(
        factory=dict, help="The data's names of each role: {user: [customer], assistant: [agent]}; ours, human and gpt are known."
    )

    chat_template: str | None = setting(None, help="Jinja text, or chatml or llama3; null is the model's own template.")

    def __attrs_post_init__(self) -> None:
        # what is wrong with them is said when the settings are read
        find_template(self.chat_template)
        Spelling(self.message_property_mappings, self.roles)

    @cached_property
    def template(self) -> str | None:
        """The Jinja text that `chat_template` names. Raises ValueError for a name that there is not."""
        return find_template(self.chat_template)

    @cached_property
    def spelling(self) -> Spelling:
        """How messages are read. Raises ValueError for settings that cannot be."""
        return Spelling(self.message_property_mappings, self.roles)

    def example(self, row: Mapping[str, Any], prompt: tuple[Message, ...], *responses: tuple[Message, ...], **more: Any) -> Example:
        """Return the Example of a row, with its tools and the chat template."""
        return Example(prompt=prompt, responses=responses, tools=col.read_tools(row), chat_template=self.template, **more)

    def write(self, prompt: Text, answers: Sequence[str]) -> Example:
        """Return a prompt and answers of another format with this one's chat template; text, which may be rendered, unchanged."""
        if isinstance(prompt, str):
            return Example(prompt=prompt, responses=tuple(answers))
        responses = tuple([{"role": "assistant", "content": answer}] for answer in answers)
        return Example(prompt=prompt, responses=responses, chat_template=self.template)

    def read_messages(self, row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
        """Return the messages of a column, the system turn first. Raises RowError."""
        return self._with_system(row, self.spelling.read(col.read(row, column), column), column)

    def _with_system(self, row: Mapping[str, Any], messages: tuple[Message, ...], column: str) -> tuple[Message, ...]:
        text = col.read_optional(row, self.field_system)
        if not text:
            return messages
        first: Message = {"role": "system", "content": text}
        if messages[0]["role"] == "system" and messages[0] != first:
            raise RowError(f"columns {self.field_system!r} and {column!r} have different system turns; keep one of them")
        return messages if messages[0] == first else (first, *messages)


@attrs.frozen(kw_only=True)
class ConversationBase(SpelledBase):
    """A format with a conversation in a column."""

    field_messages: str = setting("messages", help="Column of the conversation: a list of messages, or text for one user turn.")

    def read_conversation(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """Return the conversation, the system turn first. Raises RowError."""
        column, value = self.field_messages, col.read(row, self.field_messages)
        if not isinstance(value, str):
            return self.read_messages(row, column)
        return self._with_system(row, ({"role": "user", "content": col.check_string(value, column)},), column)

    def _split(self, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """Return what comes before the answer, and the answer. Raises RowError where the last message is no answer."""
        return col.split_conversation(self.read_conversation(row), self.field_messages)

    def other_columns(self, row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """Return the columns that are not read."""
        return col.others(row, self.field_messages, self.field_system, "tools", *used)


@attrs.frozen(kw_only=True)
class ConversationPair(ConversationBase):
    """A conversation, and two answers to it: text, a message, or messages of which the last is read."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: str = setting("chosen", help="Column of the better answer.")
    field_rejected: str = setting("rejected", help="Column of the worse answer.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        prompt = self.read_conversation(row)
        if prompt[-1]["role"] == "assistant":
            raise RowError(
                f"column {self.field_messages!r} ends with the assistant's message, and the answers are in "
                f"{self.field_chosen!r} and {self.field_rejected!r}; end it with another role, such as user"
            )
        chosen, notes = self._read_answer(row, self.field_chosen, prompt)
        rejected, more = self._read_answer(row, self.field_rejected, prompt)
        col.check_differ((chosen,), (rejected,), (self.field_chosen, self.field_rejected))
        return self.example(
            row,
            prompt,
            (chosen,),
            (rejected,),
            margin=col.read_margin(row),
            columns=self.other_columns(row, self.field_chosen, self.field_rejected, "margin"),
            notes=(*notes, *more),
        )

    def _read_answer(self, row: Mapping[str, Any], column: str, prompt: tuple[Message, ...]) -> tuple[Message, tuple[str, ...]]:
        """Return the answer, and a note where messages before it are not the prompt's and so are not read."""
        value = col.read(row, column)
        if isinstance(value, str):
            return {"role": "assistant", "content": col.check_string(value, column)}, ()
        messages = self.spelling.read([value] if isinstance(value, Mapping) else value, column)
        *before, answer = col.check_conversation(messages, column)
        known = not before or tuple(before) in (prompt, prompt[1:])  # one that has its system turn in another column
        notes = (
            () if known else (f"row(s) of which only the last message of {column!r} is read: those before it are not the prompt's",)
        )
        return answer, notes


@attrs.frozen(kw_only=True)
class ConversationAnswer(ConversationBase):
    """A conversation of which the last message, the assistant's, is the response."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the conversation, split before its last message."""
        prompt, response = self._split(row)
        return self.example(row, prompt, response, columns=self.other_columns(row))


@attrs.frozen(kw_only=True)
class ConversationLabel(ConversationBase):
    """A conversation, and whether its last message, the assistant's, is desirable."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})
    field_label: str = setting("label", help="Column that says whether the response is desirable: true or false.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the labelled response."""
        prompt, response = self._split(row)
        label, notes = col.read_label(row, self.field_label)
        return self.example(row, prompt, response, label=label, columns=self.other_columns(row, self.field_label), notes=notes)


@attrs.frozen(kw_only=True)
class ConversationPrompt(ConversationBase):
    """A conversation to be answered; an answer that it ends with is left out, and so are the answers of a pair."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})
    field_chosen: str = setting("chosen", help="Column of a pair's better answer, which is not read.")
    field_rejected: str = setting("rejected", help="Column of a pair's worse answer, which is not read.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        messages = self.read_conversation(row)
        notes: tuple[str, ...] = ()
        if messages[-1]["role"] == "assistant":
            messages, notes = messages[:-1], (f"row(s) of which {self.field_messages!r} ends with an answer: it is left out",)
        extra = self.other_columns(row, self.field_chosen, self.field_rejected, "margin")
        prompt = col.check_answerable(messages, f"column {self.field_messages!r}")
        return self.example(row, prompt, columns=extra, notes=notes)


@attrs.frozen(kw_only=True)
class WholePair(SpelledBase):
    """Two conversations that differ in their last message, the assistant's."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: str = setting("chosen", help="Column of the conversation with the better answer.")
    field_rejected: str = setting("rejected", help="Column of the conversation with the worse answer.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        names = self.field_chosen, self.field_rejected
        sides = self.read_messages(row, self.field_chosen), self.read_messages(row, self.field_rejected)
        prompt, chosen, rejected = col.split_pair(*sides, names)
        prompt = self.check_prompt(row, prompt)
        return self.example(row, prompt, chosen, rejected, margin=col.read_margin(row), columns=self.other_columns(row))

    def parse_prompt(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone, of which only the better conversation need be there."""
        before = col.without_answer(self.read_messages(row, self.field_chosen))
        prompt = self.check_prompt(row, col.check_answerable(before, f"column {self.field_chosen!r}"))
        return self.example(row, prompt, columns=self.other_columns(row))

    def check_prompt(self, row: Mapping[str, Any], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return the prompt as it is to be: for formats that ask more of it. Raises RowError."""
        return prompt

    def other_columns(self, row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """Return the columns that are not read."""
        return col.others(row, self.field_chosen, self.field_rejected, self.field_system, "margin", "tools", *used)


@attrs.frozen(kw_only=True)
class WholePrompt(WholePair):
    """The conversation before an answer, of which only that of the better one need be there."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        return self.parse_prompt(row)
