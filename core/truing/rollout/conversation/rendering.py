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
from truing.rollout.plain import well_formed

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
        """Return the prompt of an episode: the request's, with further messages behind its own. Raises RowError if refused."""

    def go_on(self, row: TokenIds, history: Sequence[Message], messages: Sequence[Message]) -> Continuation:
        """Return what follows `row`, the tokens of `history` that end with the policy's turn, for `messages` behind it.

        Raises RowError where the messages cannot be rendered.
        """


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
    """By role, whether history stays as it was before its messages."""
    _turns: dict[tuple[bool, str], tuple[Message, str | None]] = attrs.field(factory=dict, init=False)
    """Made-up turns, and the text that they are when they are written: of calls of tools or not, by what is said."""

    @property
    def turn_end(self) -> TokenIds:
        """The template's end of a turn, or the end token."""
        return self.encoder.turn_end_ids

    @cached_property
    def rewritten(self) -> tuple[str, ...]:
        """The roles before whose messages the template renders history otherwise than it was when it was written."""
        return tuple(role for role in ("user", *(("tool",) if self.tools else ())) if not self.keeps_history(role))

    @cached_property
    def hides_tools(self) -> bool:
        """Whether there are tools, and the template does not tell the policy of them."""
        question = self.encoder.question
        return bool(self.tools and question) and self._text(question) == self.encoder.apply_template(question, None)

    def begin(self, request: RolloutRequest, messages: Sequence[Message]) -> TokenIds:
        """Return the prompt. Raises ConfigError where the request's was not rendered as this tokenizer renders it, and RowError."""
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
            text = self.encoder.apply_template(messages, self.tools, add_generation_prompt=add_generation_prompt)
        except RowError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise RowError(f"a conversation of {roles} cannot be rendered: {error}; give another model.chat_template") from error
        return well_formed(text)

    def go_on(self, row: TokenIds, history: Sequence[Message], messages: Sequence[Message]) -> Continuation:
        """Return the template's text for `messages`, or the whole conversation where it renders history otherwise."""
        if all(self.keeps_history(str(message["role"])) for message in messages):
            follows = self._behind(str(messages[0]["role"]), ANSWERS[0], messages)
            if follows is not None:
                return Continuation(self._behind_a_turn(follows))
        text = self._text([*history, *messages], add_generation_prompt=True)
        there = str(self.encoder.tokenizer.decode(list(row), skip_special_tokens=False))
        if text.startswith(there):
            return Continuation(self._behind_a_turn(text[len(there) :]))
        return Continuation(self.encoder.tokenize([text])[0], anew=True)

    def _behind_a_turn(self, text: str) -> TokenIds:
        """Return the tokens of a text as they are behind the end of a turn; some tokenizers begin a text with a space."""
        end = self.encoder.turn_end.rstrip()
        before, ids = self.encoder.tokenize([end, end + text])
        return ids[len(before) :] if ids[: len(before)] == before else self.encoder.tokenize([text])[0]

    def keeps_history(self, role: str) -> bool:
        """Return whether a message of this role leaves what was written before it as it was, with thinking and without."""
        if role not in self._kept:
            one = {"role": role, "content": "o", **_answering(role)}
            self._kept[role] = all(self._behind(role, answer, [one]) is not None for answer in ANSWERS)
        return self._kept[role]

    def _behind(self, role: str, answer: str, messages: Sequence[Message]) -> str | None:
        """Return what the template writes for messages behind a made-up turn; None where it writes the turn otherwise then."""
        is_call = role == "tool"
        if (is_call, answer) not in self._turns:
            self._turns[is_call, answer] = self._made_up(answer, is_call=is_call)
        turn, before = self._turns[is_call, answer]
        if before is None:
            return None
        text = self._text([*self.encoder.question, turn, *messages], add_generation_prompt=True)
        return text[len(before) :] if text.startswith(before) else None

    def _made_up(self, answer: str, *, is_call: bool) -> tuple[Message, str | None]:
        """Return a turn behind a question, and the text of both as it is when the policy writes it.

        What a call looks like is the template's to say; None where what the policy wrote beside it is not there.
        """
        question = self.encoder.question
        if not question:
            return {}, None
        opening = self._text(question, add_generation_prompt=True)
        if not is_call:
            return {"role": "assistant", "content": answer}, opening + answer + self.encoder.turn_end.rstrip()
        content = "" if answer == ANSWERS[0] else answer
        turn: Message = {"role": "assistant", "content": content, "tool_calls": [CALL]}
        text = cut_after_turn(self._text([*question, turn]), self.encoder.turn_end)
        return turn, text if text.startswith(opening + content) else None


def _answering(role: str) -> dict[str, Any]:
    return {"name": "f", "tool_call_id": CALL["id"]} if role == "tool" else {}


@attrs.frozen(eq=False)
class TextRenderer:
    """Renders for a prompt that is plain text: what is said follows as text, tokenised by itself, without markup."""

    encoder: Encoder

    @property
    def turn_end(self) -> TokenIds:
        """The end token."""
        return self.encoder.end_ids

    def begin(self, request: RolloutRequest, messages: Sequence[Message]) -> TokenIds:
        """Return the prompt's tokens and those of the text."""
        return (*request.prompt_ids, *self._ids(messages))

    def go_on(self, row: TokenIds, history: Sequence[Message], messages: Sequence[Message]) -> Continuation:
        """Return the tokens of the text."""
        return Continuation(self._ids(messages))

    def _ids(self, messages: Sequence[Message]) -> TokenIds:
        return self.encoder.tokenize([well_formed("".join(str(message["content"]) for message in messages))])[0]
