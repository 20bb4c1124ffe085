"""What a dataset strategy makes of a row, before any tokenizer: a prompt and its responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import attrs

from truing.loss import Layout

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: `role`, `content`, and what else the chat template reads."""
Text: TypeAlias = str | Sequence[Message]
"""Text as it is, or messages that the tokenizer's chat template renders."""


@attrs.frozen(eq=False, kw_only=True)
class Example:
    """A prompt with its responses: both text, or both messages.

    `responses` are in the order of the layout: chosen, rejected; or best first; or the one labelled. `prompt` may be empty text.
    """

    prompt: Text
    responses: tuple[Text, ...] = ()
    label: bool | None = None
    """LABELED layout: whether the response is desirable."""
    ranks: tuple[int, ...] | None = None
    """RANKED layout: 0 is the best; equal ranks are ties."""
    margin: float | None = None
    """PAIRED layout: by how much chosen is better, where the data says."""
    add_eos: bool = True
    """Whether text responses get the end token when they lack it; messages always end as their template ends them."""
    turn_end: str = ""
    """What the format itself ends text responses with, such as `<|im_end|>`; no end token follows one that is a special token."""
    tools: Sequence[Any] | None = None
    """Tool descriptions for the chat template."""
    chat_template: str | None = None
    """Jinja text that renders the messages in the place of the model's own template."""
    columns: Mapping[str, Any] = attrs.field(factory=dict)
    """Extra columns, handed on to rewards."""
    notes: tuple[str, ...] = ()
    """What was made of the row that the user should know, such as "labels 1 read as true"; counted in the report."""


class DatasetStrategy(Protocol):
    """Reads one row of a dataset: an attrs class of settings such as column names.

    A name may serve several layouts with different columns: one class each, unique per name and layout.

    Optional: a class method `recognises(row) -> bool`, which says whether a row is one of this format's and could be no other's.
    Where a configuration names no format, the one of those for the method's layout that recognises the first row is taken. It
    is quick, looks at columns and their types only, and says False where the user must choose: between markups, say.

    Optional: a method `write(prompt, answers) -> Example`, for a format with a markup or a chat template of its own. It returns a
    prompt, text or messages, and answers as text, none of them of a row, as it would have written them: a reward model is asked
    so about completions of an online run. It raises truing.RowError for what it cannot write.
    """

    name: ClassVar[str]
    layouts: ClassVar[frozenset[Layout]]

    def parse(self, row: Mapping[str, Any]) -> Example | Sequence[Example]:
        """Return the row as an Example, or as several, each a sample of its own: both sides of a pair for a LABELED method, say.

        Raises truing.RowError, saying which column is wrong and why; never mutates the row. A row that gives no Example is wrong.
        """
