"""The format `zephyr.nectar`: a prompt and its ranked answers, as pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

from truing import ChatFamily, DatasetStrategy, Example, Layout, Turn, setting
from truing.data import columns as col
from truing.data.example import Message, Text
from truing.data.ranked import PAIRS_HELP, Pairs, choose_pairs

ZEPHYR = ChatFamily(
    name="zephyr",
    system=Turn("<|system|>\n", "</s>\n"),
    user=Turn("<|user|>\n", "</s>\n"),
    assistant=Turn("<|assistant|>\n", "</s>\n"),
)
"""What Zephyr writes around turns."""


@attrs.frozen(kw_only=True)
class Nectar(DatasetStrategy):
    """A prompt and ranked answers, the lowest rank being the best, as pairs in the turns of Zephyr.

    The system turn is always there and, unless the prompt is messages that begin with one, empty. Responses are the answers as they
    are: they get the tokenizer's end token, which is `</s>` for Zephyr's own.
    """

    name: ClassVar[str] = "zephyr.nectar"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_prompt: str = setting("prompt", help="Column of the user's turn, or of the messages so far.")
    field_answers: str = setting("answers", help="Column of the list of answers with their ranks.")
    field_answer: str = setting("answer", help="Key of an answer's text.")
    field_rank: str = setting("rank", help="Key of an answer's rank.")
    pairs: Pairs = setting("best_next", help=PAIRS_HELP)

    def parse(self, row: Mapping[str, Any]) -> Example | Sequence[Example]:
        """Return the pair, or all of them. Answers of equal rank make no pair. Raises RowError where none is left."""
        prompt = self._write_prompt(row)
        answers = col.read_answers(row, self.field_answers, prompt, keys=(self.field_answer, self.field_rank))
        chosen = choose_pairs(answers, self.pairs, self.field_answers)
        extra = col.others(row, self.field_prompt, self.field_answers)
        examples = tuple(Example(prompt=prompt, responses=pair, columns=extra) for pair in chosen)
        return examples if self.pairs == "all" else examples[0]

    def _write_prompt(self, row: Mapping[str, Any]) -> str:
        value = col.check_prompt(col.read(row, self.field_prompt), self.field_prompt)
        return _write_turns(({"role": "user", "content": value},) if isinstance(value, str) else value, self.field_prompt)

    def write(self, prompt: Text, answers: Sequence[str]) -> Example:
        """Return a prompt and answers of another format in Zephyr's turns; text that is in them already is unchanged."""
        if isinstance(prompt, str) and prompt.endswith(ZEPHYR.assistant.prefix):
            return Example(prompt=prompt, responses=tuple(answers))
        turns = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        return Example(prompt=_write_turns(turns, "prompt"), responses=tuple(answers))


def _write_turns(messages: Sequence[Message], column: str) -> str:
    turns = ZEPHYR.check_turns(messages, column)
    says = any(turn["role"] == "system" and turn["content"] for turn in turns[:1])
    silence = "" if says else ZEPHYR.system.prefix + ZEPHYR.system.suffix
    return silence + ZEPHYR.write_prompt(turns)


@attrs.frozen(kw_only=True)
class NectarPrompt(Nectar):
    """A prompt in the turns of Zephyr; its ranked answers need not be there."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        return Example(prompt=self._write_prompt(row), columns=col.others(row, self.field_prompt, self.field_answers))
