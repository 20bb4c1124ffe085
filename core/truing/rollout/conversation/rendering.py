"""How the messages of an episode become tokens, without a change to the tokens that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import attrs

from truing.data.encode import Encoder, cut_after_turn
from truing.data.example import Message
from truing.data.tree import TokenIds
from truing.errors import ConfigError, RowError
from truing.rollout.completion import RolloutRequest

ANSWERS = ("a", "<think>\nt\n</think>\n\na")
"""What an assistant may have written: without thinking, and with it."""
CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}


@attrs.frozen
class Continuation:
    """What the policy reads after one of its turns."""

    ids: TokenIds
    anew: bool = False
    """Whether these are all tokens of the conversation, rendered anew, and not what follows those that are there."""


class Renderer(Protocol):
    """Renders the messages of one episode."""

    turn_end: TokenIds
    """What ends a turn of the policy that was cut at its limit."""

    def begin(self, request: RolloutRequest, messages: Sequence[Message]) -> TokenIds:
        """Return the prompt of an episode: the request's, with further messages behind its own."""

    def go_on(self, row: TokenIds, history: Sequence[Message], messages: Sequence[Message]) -> Continuation:
        """Return what follows `row`, the tokens of `history` that end with the policy's turn, for `messages` behind it."""


@attrs.frozen(eq=False)
class ChatRenderer:
    """Renders with the tokenizer's chat template.

    What follows a turn is what the template writes for the new messages behind a made-up turn: the difference of two renderings.
    That holds where the template leaves history as it was, which is looked at for each role; some leave out earlier thinking, or
    write a turn otherwise when it is not the last. There the conversation is rendered as a whole: if its text begins with that of
    the tokens at hand, what follows is the rest, and otherwise the tokens of the whole, in a new row.
    """

    encoder: Encoder
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of what the policy may call."""
    _kept: dict[str, bool] = attrs.field(factory=dict, init=False)

    @property
    def turn_end(self) -> TokenIds:
        """The template's end of a turn, or the end token."""
        return self.encoder.turn_end_ids

    @cached_property
    def rewritten(self) -> tuple[str, ...]:
        """The roles before whose messages the template renders history otherwise than it was when it was written."""
        return tuple(role for role in ("user", *(("tool",) if self.tools else ())) if not self.keeps_history(role))

    def begin(self, request: RolloutRequest, messages: Sequence[Message]) -> TokenIds:
        """Return the prompt. Raises ConfigError where the request's was not rendered as this tokenizer renders it."""
        assert not isinstance(request.prompt, str), "text is rendered by TextRenderer"
        own = self.encoder.tokenize([self.encoder.apply_template(request.prompt, None, add_generation_prompt=True)])[0]
        if own != request.prompt_ids:
            raise ConfigError(
                f"the messages of a prompt were rendered to {len(request.prompt_ids)} tokens, and the tokenizer's template makes "
                f"{len(own)} others: by a format's chat_template, with `tools` of the row, or cut at "
                "trainer.max_prompt_length. A conversation goes on with the tokenizer's template, so leave these out, and give a "
                "template of your own as model.chat_template"
            )
        return self._whole([*request.prompt, *messages]) if messages or self.tools else own

    def _whole(self, messages: Sequence[Message]) -> TokenIds:
        return self.encoder.tokenize([self._text(messages, add_generation_prompt=True)])[0]

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return self.encoder.apply_template(messages, self.tools, add_generation_prompt=add_generation_prompt)
        except RowError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ConfigError(f"a conversation of {roles} cannot be rendered: {error}; give another model.chat_template") from error

    def go_on(self, row: TokenIds, history: Sequence[Message], messages: Sequence[Message]) -> Continuation:
        """Return the template's text for `messages`, or the whole conversation where it renders history otherwise."""
        if all(self.keeps_history(str(message["role"])) for message in messages):
            before, text = self._made_up(str(messages[0]["role"]), ANSWERS[0], messages)
            if text.startswith(before):
                return Continuation(self.encoder.tokenize([text[len(before) :]])[0])
        text = self._text([*history, *messages], add_generation_prompt=True)
        there = str(self.encoder.tokenizer.decode(list(row), skip_special_tokens=False))
        if text.startswith(there):
            return Continuation(self.encoder.tokenize([text[len(there) :]])[0])
        return Continuation(self.encoder.tokenize([text])[0], anew=True)

    def keeps_history(self, role: str) -> bool:
        """Return whether a message of this role leaves what was written before it as it was, with thinking and without."""
        if role not in self._kept:
            made = [self._made_up(role, answer, [{"role": role, "content": "o", **_answering(role)}]) for answer in ANSWERS]
            self._kept[role] = bool(self.encoder.question) and all(text.startswith(before) for before, text in made)
        return self._kept[role]

    def _made_up(self, role: str, answer: str, messages: Sequence[Message]) -> tuple[str, str]:
        """Return the text of a question and an answer as it was when it was written, and that with messages behind it."""
        question = self.encoder.question
        opening = self._text(question, add_generation_prompt=True) if question else ""
        if role == "tool":  # what a call looks like is the template's to say
            turn: Message = {"role": "assistant", "content": answer if answer != ANSWERS[0] else "", "tool_calls": [CALL]}
            before = cut_after_turn(self._text([*question, turn]), self.encoder.turn_end)
            before = before if before.startswith(opening + str(turn["content"]).rstrip()) else opening + answer
        else:
            turn = {"role": "assistant", "content": answer}
            before = opening + answer + self.encoder.turn_end.rstrip()
        return before, self._text([*question, turn, *messages], add_generation_prompt=True)


def _answering(role: str) -> dict[str, Any]:
    return {"name": "f", "tool_call_id": CALL["id"]} if role == "tool" else {}


@attrs.frozen(eq=False)
class TextRenderer:
    """Renders for a prompt that is plain text: what is said follows as text, tokenised by itself, without markup."""

    encoder: Encoder

    @property
    def turn_end(self) -> TokenIds:
        """The end token."""
        eos = self.encoder.tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    def begin(self, request: RolloutRequest, messages: Sequence[Message]) -> TokenIds:
        """Return the prompt's tokens and those of the text."""
        return (*request.prompt_ids, *self._ids(messages))

    def go_on(self, row: TokenIds, history: Sequence[Message], messages: Sequence[Message]) -> Continuation:
        """Return the tokens of the text."""
        return Continuation(self._ids(messages))

    def _ids(self, messages: Sequence[Message]) -> TokenIds:
        return self.encoder.tokenize(["".join(str(message["content"]) for message in messages)])[0]
