"""Examples to prompt trees: rendering, tokenising, end tokens, masks, and where a prompt ends."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from truing.data.dataset import branch_roles
from truing.data.example import Example, Message, Text
from truing.data.tree import Branch, PromptTree, TokenIds
from truing.errors import ModelError, RowError
from truing.loss import Layout, PromptTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESPONSES = {
    Layout.PAIRED: (2, 2),
    Layout.LABELED: (1, 1),
    Layout.ROLLOUT: (0, 0),
    Layout.RANKED: (2, None),
    Layout.SINGLE: (1, None),
}

_ADVICE = "count the last turn only, make a row of each turn, or give a model.chat_template that renders every turn alike"


@attrs.frozen
class Rendered:
    """An Example as text: its prompt, and the prompt with each response."""

    example: Example
    prompt: str
    wholes: tuple[str, ...]
    chat: bool
    """Rendered by a chat template, which brings the special tokens."""
    turns: tuple[tuple[int, int], ...] = ()
    """The prompt's characters that the assistant wrote, as half-open ranges, where these are counted."""


@attrs.frozen
class Encoded:
    """A prompt tree, and what had to be done for it."""

    tree: PromptTree
    rendered: Rendered
    prompt_split: bool
    """The rendered prompt is no token prefix of prompt and response together, so that the branches begin earlier."""
    prompt_invented: bool
    """The prompt had no token, and the beginning (or end) token stands in, to predict the first of a response from."""


@attrs.frozen
class Encoder:
    """Turns Examples into prompt trees with one tokenizer.

    Prompt and response are tokenised together; the prompt is what the rendered prompt's tokens are, if those begin every whole,
    and else the longest common prefix of them all. All tokens of a response are counted, its end token included; of the prompt,
    those that `prompt_tokens` names, but for the first, which nothing predicts.

    Text gets the special tokens that the tokenizer puts before a text, once, and the end token after it if `add_eos` and it
    lacks it, or instead the end of the format's own turns, where the tokenizer has a token for that.
    A chat template brings its own: what it writes after the token that ends the turn is cut, and the end token is
    added only where the template ends a turn with no special token.
    """

    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    prompt_tokens: PromptTokens = "none"
    template_key: str = "model.chat_template"
    """Where the chat template is from, for messages."""
    _by_template: dict[str, Encoder] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | RowError]:
        """Return a tree for each Example, or the RowError that says why it has none. Raises ModelError as `render` does."""
        rendered = [self._try_render(example) for example in examples]
        good = [item for item in rendered if isinstance(item, Rendered)]
        ids = iter(self.tokenize([text for item in good for text in (item.prompt, *item.wholes)]))
        return [
            item if isinstance(item, RowError) else self._assemble(item, [next(ids) for _ in range(1 + len(item.wholes))])
            for item in rendered
        ]

    def with_template(self, template: str | None) -> Encoder:
        """Return the encoder whose tokenizer has this chat template; itself for None."""
        if template is None:
            return self
        if template not in self._by_template:
            tokenizer = copy.copy(self.tokenizer)
            tokenizer.chat_template = template
            self._by_template[template] = attrs.evolve(self, tokenizer=tokenizer, template_key="the format's chat_template")
        return self._by_template[template]

    def _try_render(self, example: Example) -> Rendered | RowError:
        try:
            return self.with_template(example.chat_template).render(example)
        except RowError as error:
            return error

    def render(self, example: Example) -> Rendered:
        """Return the Example as text.

        Raises RowError where it does not fit the layout or the template refuses it, and ModelError without a template.
        """
        least, most = _RESPONSES[self.layout]
        if self.layout is Layout.ROLLOUT:
            example = attrs.evolve(example, responses=())
        if len(example.responses) < least or (most is not None and len(example.responses) > most):
            number = f"{least}{'' if most else ' or more'}"
            raise RowError(f"the layout {self.layout.name} takes {number} responses, the row gives {len(example.responses)}")
        if self.layout is Layout.LABELED and not isinstance(example.label, bool):
            raise RowError(f"the layout LABELED takes a boolean label, the row gives {example.label!r}")
        if self.layout is Layout.RANKED and (example.ranks is None or len(example.ranks) != len(example.responses)):
            raise RowError(f"the layout RANKED takes a rank for every response, the row gives {example.ranks!r}")
        if self.layout is Layout.RANKED and len(set(example.ranks or ())) < 2:
            raise RowError(f"the layout RANKED takes two or more different ranks, the row gives {example.ranks!r}: all are ties")
        if len({isinstance(text, str) for text in (example.prompt, *example.responses)}) > 1:
            raise RowError("prompt and responses must be all text or all messages; the row mixes both")
        chat = not isinstance(example.prompt, str)
        prompt, wholes = (self._render_chat if chat else self._render_text)(example)
        turns: tuple[tuple[int, int], ...] = ()
        if self.prompt_tokens == "assistant" and not isinstance(example.prompt, str):
            turns = self._find_turns(example.prompt, example.tools, prompt)
        if not chat and example.turn_end.strip() and not self._is_end(example.turn_end):
            note = f"the format ends turns with {example.turn_end!r}, which this tokenizer has no token for: it is read as text"
            example = attrs.evolve(example, notes=(*example.notes, f"{note}, and the end token follows it"))
        rendered = Rendered(example, prompt, wholes, chat, turns)
        for text in (rendered.prompt, *rendered.wholes):
            _check_unicode(text)
        return rendered

    def _render_chat(self, example: Example) -> tuple[str, tuple[str, ...]]:
        prompt = self.apply_template(example.prompt, example.tools, add_generation_prompt=True)
        wholes = [self.apply_template([*example.prompt, *response], example.tools) for response in example.responses]
        return prompt, tuple(cut_after_turn(whole, self.turn_end) for whole in wholes)

    def _render_text(self, example: Example) -> tuple[str, tuple[str, ...]]:
        assert isinstance(example.prompt, str), "messages are rendered by the template"
        wholes = tuple(example.prompt + str(response) for response in example.responses)
        ends = self._is_end(example.turn_end)
        return example.prompt, tuple(cut_after_turn(whole, example.turn_end) for whole in wholes) if ends else wholes

    def _is_end(self, turn_end: str) -> bool:
        """Return whether a format's own end of a turn is a special token, but for white space behind it."""
        return turn_end.rstrip() in self._special_tokens

    def _find_turns(self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: str) -> tuple[tuple[int, int], ...]:
        """Return where the assistant's turns lie in the rendered prompt, each from what asks for it to the token that ends it.

        Raises RowError where the template renders a turn otherwise than when it was the last.
        """
        turns = []
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            try:
                before = self.apply_template(messages[:index], tools, add_generation_prompt=True)
                through = cut_after_turn(self.apply_template(messages[: index + 1], tools), self.turn_end)
            except RowError as error:
                raise RowError(f"which tokens of message {index} are the assistant's cannot be told: {error}; {_ADVICE}") from error
            if not (through.startswith(before) and prompt.startswith(through)):
                raise RowError(
                    f"which tokens of message {index} are the assistant's cannot be told: the chat template renders it otherwise "
                    f"here than when it was the last (some drop earlier thinking); {_ADVICE}"
                )
            turns.append((len(before), len(through)))
        return tuple(turns)

    def apply_template(self, messages: Text, tools: Sequence[Any] | None, *, add_generation_prompt: bool = False) -> str:
        """Return messages as the chat template writes them. Raises ModelError where there is none, RowError where it refuses."""
        import jinja2

        if self.tokenizer.chat_template is None:
            raise ModelError(
                "the data has messages, and the tokenizer has no chat template; give one as model.chat_template (Jinja text or a "
                "file), choose a model that has one, or a format that makes text"
            )
        # a batch of one, for transformers refuses to render no message, which is what comes before an assistant's first words
        conversations: list[Any] = [list(messages)]
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversations,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"{self.template_key} is not valid Jinja: {error.message} in line {error.lineno}") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise RowError(f"the chat template refuses the messages: {error}") from error
        return str(rendered[0])

    def prompt_text(self, encoded: Encoded, tree: PromptTree) -> str:
        """Return the text of the tree's prompt: as rendered, or decoded where the tokens begin later or end earlier than it."""
        rendered = encoded.rendered
        if tree.prompt_ids == encoded.tree.prompt_ids and not encoded.prompt_split:
            return rendered.prompt
        before = 0 if rendered.chat or encoded.prompt_invented else len(self.before_text)
        return str(self.tokenizer.decode(list(tree.prompt_ids[before:])))

    @cached_property
    def question(self) -> tuple[Message, ...]:
        """The beginning of a conversation that the chat template takes, an answer to it included; empty where it takes none."""
        asked: Message = {"role": "user", "content": "q"}
        for before in ((asked,), ({"role": "system", "content": "s"}, asked)):  # some templates insist on a system turn
            with contextlib.suppress(RowError):
                self.apply_template([*before, {"role": "assistant", "content": "a"}], None)
                return before
        return ()

    @cached_property
    def turn_end(self) -> str:
        """What the chat template writes after an assistant's content: the end that renderings of two contents share."""
        if not self.question:
            return ""  # nothing is cut
        a, b = (self.apply_template([*self.question, {"role": "assistant", "content": content}], None) for content in "ab")
        return _common_suffix(a, b)

    @cached_property
    def turn_end_ids(self) -> TokenIds:
        """The tokens that end an assistant's turn: the template's, where that ends turns with a special one, or the end token."""
        if self._turn_ends_specially:
            return self.tokenize([self.turn_end.rstrip()])[0]
        return self.end_ids

    @property
    def end_ids(self) -> TokenIds:
        """The end token, if there is one."""
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    @cached_property
    def before_text(self) -> TokenIds:
        """The special tokens that the tokenizer puts before a text, such as the beginning token."""
        bare = self.tokenize(["a"])[0]
        whole = self.tokenizer("a", verbose=False)["input_ids"]
        starts = (i for i in range(len(whole)) if tuple(whole[i : i + len(bare)]) == bare)
        return tuple(whole[: next(starts, 0)])

    def has_end(self, ids: TokenIds) -> bool:
        """Return whether the last token is a special one, such as the end token."""
        return bool(ids) and ids[-1] in self._special_ids

    @cached_property
    def _turn_ends_specially(self) -> bool:
        return self.has_end(self.tokenize([self.turn_end.rstrip()])[0])

    @cached_property
    def _special_tokens(self) -> frozenset[str]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        return frozenset(added) | frozenset(self.tokenizer.all_special_tokens)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder) | frozenset(self.tokenizer.all_special_ids)

    def tokenize(self, texts: list[str]) -> list[TokenIds]:
        """Return the tokens of each text, without what the tokenizer puts around one."""
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return [tuple(of_text) for of_text in ids]

    def _assemble(self, rendered: Rendered, ids: list[TokenIds]) -> Encoded:
        example = rendered.example
        prompt, *wholes = (self._with_special(of_text, rendered) for of_text in ids)
        ended = [self._with_eos(whole, rendered) for whole in wholes]
        split = min((common_length(prompt, whole) for whole in wholes), default=len(prompt))
        start = prompt[:split] or (self._first_token(),)
        mask = (False, *self._prompt_mask(rendered, len(prompt))[1:split])
        roles = branch_roles(self.layout, len(wholes))
        ranks = example.ranks if self.layout is Layout.RANKED and example.ranks else (None,) * len(wholes)
        tree = PromptTree(
            prompt_ids=start,
            prompt_mask=mask if any(mask) else (),
            branches=tuple(
                Branch(token_ids=whole[split:], loss_mask=(True,) * (len(whole) - split), role=role, rank=rank, label=example.label)
                for whole, role, rank in zip(ended, roles, ranks, strict=True)
            ),
            sample_id=-1,
            margin=example.margin,
            columns=example.columns,
        )
        return Encoded(tree, rendered, prompt_split=split < len(prompt), prompt_invented=split == 0)

    def _prompt_mask(self, rendered: Rendered, size: int) -> tuple[bool, ...]:
        """Return which of the prompt's `size` tokens are counted; in a turn are those that hold one of its characters."""
        if not rendered.turns:
            return (self.prompt_tokens == "all",) * size
        if not self.tokenizer.is_fast:
            raise ModelError(
                "the tokens of earlier assistant turns are counted, and this tokenizer cannot say which characters a token stands "
                "for; use one that has a tokenizer.json, or count the last turn only"
            )
        encoding = self.tokenizer(rendered.prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return tuple(
            any(start < end and first < stop for start, stop in rendered.turns) for first, end in encoding["offset_mapping"]
        )

    def _with_special(self, ids: TokenIds, rendered: Rendered) -> TokenIds:
        before = () if rendered.chat else self.before_text
        return ids if ids[: len(before)] == before else before + ids

    def _with_eos(self, ids: TokenIds, rendered: Rendered) -> TokenIds:
        eos = self.tokenizer.eos_token_id
        of_template = self.with_template(rendered.example.chat_template)
        ends = of_template._turn_ends_specially if rendered.chat else self._is_end(rendered.example.turn_end)
        if (ends and self.has_end(ids)) or ids[-1:] == (eos,) or not (rendered.chat or rendered.example.add_eos):
            return ids
        if eos is None:
            raise ModelError(
                "the tokenizer has no end token, and a response must end with one; set eos_token in its tokenizer_config.json"
            )
        return (*ids, eos)

    def _first_token(self) -> int:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ModelError("a prompt is empty, and the tokenizer has neither a beginning nor an end token to put there")
        return int(eos if bos is None else bos)


def cut_after_turn(whole: str, turn_end: str) -> str:
    """Return a rendered conversation without the white space behind the end of its last turn."""
    trailing = turn_end[len(turn_end.rstrip()) :]
    return whole[: len(whole) - len(trailing)] if whole.endswith(turn_end) else whole


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise RowError(
            f"the text has half of a surrogate pair, U+{code:04X}, which is no character; mend it where the file was made"
        ) from error


def common_length(a: TokenIds, b: TokenIds) -> int:
    """Return how many tokens both begin with."""
    if b[: len(a)] == a:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _common_suffix(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y), min(len(a), len(b)))
    return a[len(a) - length :]
