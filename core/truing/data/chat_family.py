"""A chat markup as data: what stands around a turn of each role, for formats that write prompt and responses as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from truing.data import columns as col
from truing.data.example import Message, Text
from truing.errors import RowError


@attrs.frozen
class Turn:
    """What is written before and after the content of a turn."""

    prefix: str
    suffix: str


@attrs.frozen(kw_only=True)
class ChatFamily:
    """A chat markup: what is written around the turns of each role. Content between them is never changed.

    A response ends with the assistant's suffix, less the white space at its end; one that ends so already gets no second.
    """

    name: str
    """What its formats' names begin with."""
    system: Turn
    user: Turn
    assistant: Turn

    @property
    def end(self) -> str:
        """What ends a response."""
        return self.assistant.suffix.rstrip()

    def write_prompt(self, messages: Sequence[Message]) -> str:
        """Return the turns of messages, system turns that say nothing left out, and what begins the assistant's next."""
        turns = (self._write(message["role"], message["content"]) for message in messages)
        return "".join((*turns, self.assistant.prefix))

    def write_question(self, prompt: Text) -> str:
        """Return a prompt of another format in this markup; text that is in it already is unchanged, other text the user's turn.

        Raises RowError for messages that the markup has no turn for.
        """
        if not isinstance(prompt, str):
            return self.write_prompt(self.check_turns(prompt, "prompt"))
        written = prompt.endswith(self.assistant.prefix)
        return prompt if written else self.write_prompt([{"role": "user", "content": prompt}])

    def _write(self, role: str, content: str) -> str:
        turn: Turn = getattr(self, role)
        return "" if role == "system" and not content else f"{turn.prefix}{content}{turn.suffix}"

    def write_response(self, content: str) -> str:
        """Return a response with its end."""
        return content if content.endswith(self.end) else content + self.end

    def read_turns(self, row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
        """Return the role and content of a column's messages. Raises RowError for those that the markup has no turn for."""
        return self.check_turns(col.read(row, column), column)

    def check_turns(self, value: Any, column: str) -> tuple[Message, ...]:
        """Return the role and content of messages that are the value of a column. Raises RowError as `read_turns` does."""
        messages = col.check_messages(value, column)
        for index, message in enumerate(messages):
            if message["role"] not in ("system", "user", "assistant"):
                raise RowError(
                    f"{column}[{index}] has the role {message['role']!r}, and {self.name} has turns for system, user and assistant "
                    "only; choose a format that uses the model's own chat template"
                )
            if "content" not in message:
                raise RowError(
                    f"{column}[{index}] has tool calls and no content, and {self.name} writes content only; choose a format that "
                    "uses the model's own chat template"
                )
        return tuple({"role": message["role"], "content": message["content"]} for message in messages)
