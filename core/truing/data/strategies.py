"""The formats that core brings: preference, text, passthrough, unpaired and ranked; and a user's function as a format."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from truing.data import columns as col
from truing.data.example import DatasetStrategy, Example, Message, Text
from truing.data.looks import first_of, has_pair_beside, has_system_beside, is_messages, is_pair
from truing.data.ranked import Ranked, RankedPairs
from truing.data.unpair import unpair
from truing.errors import ConfigError, RowError
from truing.functions import describe_failure, find_function, load_function
from truing.loss import Layout


@attrs.frozen(kw_only=True)
class Preference(DatasetStrategy):
    """Columns prompt, chosen and rejected, as text or as messages.

    The prompt may be the messages that both sides begin with: then `prompt` may be missing, be the same messages, or the text of
    their one user turn.
    """

    name: ClassVar[str] = "preference"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has both sides and a prompt, in a column or as what both begin with, and no system turn beside."""
        return is_pair(row)

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        prompt, chosen, rejected = _read_pair(row)
        extra = col.others(row, "prompt", "chosen", "rejected", "margin", "tools")
        return Example(
            prompt=prompt, responses=(chosen, rejected), margin=col.read_margin(row), tools=col.read_tools(row), columns=extra
        )


@attrs.frozen(kw_only=True)
class PreferencePrompt(DatasetStrategy):
    """The prompt of a `preference` row; chosen and rejected need not be there."""

    name: ClassVar[str] = "preference"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row is a pair of this format."""
        return is_pair(row)

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        has_prompt = row.get("prompt") is not None or "chosen" not in row
        prompt = col.check_prompt(col.read(row, "prompt"), "prompt") if has_prompt else _read_pair(row)[0]
        if has_prompt and _is_conversation(row.get("chosen")):
            prompt = _as_turns(prompt)
        return Example(
            prompt=prompt, tools=col.read_tools(row), columns=col.others(row, "prompt", "chosen", "rejected", "margin", "tools")
        )


@attrs.frozen(kw_only=True)
class PreferenceLabels(DatasetStrategy):
    """A `preference` row as two samples: chosen is desirable, rejected is not."""

    name: ClassVar[str] = "preference"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row is a pair of this format."""
        return is_pair(row)

    def parse(self, row: Mapping[str, Any]) -> tuple[Example, Example]:
        """Return chosen and rejected, each with its label."""
        return unpair(Preference().parse(row))


@attrs.frozen(kw_only=True)
class PromptText(DatasetStrategy):
    """Column prompt, as text or as messages; or column text; or query, a user's turn, with a system turn in column system.

    The first of these that a row has is read.
    """

    name: ClassVar[str] = "text"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has one of these columns, and is no pair."""
        return not is_pair(row) and first_of(row, "prompt", "text", "query") is not None and not has_system_beside(row)

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt."""
        column = first_of(row, "prompt", "text", "query") or "prompt"
        if column == "query":
            return self._parse_query(row)
        prompt = col.check_prompt(col.read(row, column), column)
        return Example(prompt=prompt, tools=col.read_tools(row), columns=col.others(row, column, "tools"))

    def _parse_query(self, row: Mapping[str, Any]) -> Example:
        system, query = col.read_optional(row, "system"), col.read_string(row, "query")
        turns = ({"role": "system", "content": system}, {"role": "user", "content": query})
        extra = col.others(row, "query", "system", "tools")
        return Example(prompt=turns if system else turns[1:], tools=col.read_tools(row), columns=extra)


@attrs.frozen(kw_only=True)
class PreferenceChosen(DatasetStrategy):
    """The prompt and the chosen side of a `preference` row."""

    name: ClassVar[str] = "preference"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row is a pair of this format."""
        return is_pair(row)

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the chosen response alone."""
        pair = Preference().parse(row)
        return attrs.evolve(pair, responses=pair.responses[:1], margin=None)


@attrs.frozen(kw_only=True)
class ResponseText(DatasetStrategy):
    """Columns prompt and completion, as text or as messages; or messages, of which the last is the assistant's; or text alone.

    The first of completion, messages and text that a row has is read.
    """

    name: ClassVar[str] = "text"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has prompt and completion, or messages, or text alone, and nothing that says it may be bad."""
        column = first_of(row, "completion", "messages", "text")
        alone = row.get("prompt") is None
        fits = {"completion": not alone, "messages": alone and is_messages(row.get("messages")), "text": alone}
        others = has_pair_beside(row) or has_system_beside(row) or "label" in row
        return column is not None and fits[column] and not others

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt, which is empty for text alone, and the response."""
        column = first_of(row, "completion", "messages", "text")
        if column is None:
            columns = ", ".join(map(repr, row)) or "none"
            raise RowError(
                f"the row has no column 'completion' (beside 'prompt'), 'messages' or 'text' with a value; it has {columns}: "
                "rename a column, or choose the format that fits"
            )
        used = [column, "tools"]
        if column == "completion":
            prompt, response = col.check_prompt(col.read(row, "prompt"), "prompt"), col.check_response(row[column], column)
            col.same_kind(prompt, response, column)
            used.append("prompt")
        elif column == "messages":
            prompt, response = col.split_conversation(row[column], column)
        else:
            prompt, response = "", col.read_string(row, column)
        return Example(prompt=prompt, responses=(response,), tools=col.read_tools(row), columns=col.others(row, *used))


@attrs.frozen(kw_only=True)
class Passthrough(DatasetStrategy):
    """Columns prompt (which may be empty), chosen and rejected: text that is used unchanged, without template or end token."""

    name: ClassVar[str] = "passthrough"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair."""
        prompt = col.read_string(row, "prompt", may_be_empty=True)
        chosen, rejected = col.read_string(row, "chosen"), col.read_string(row, "rejected")
        col.check_differ(chosen, rejected)
        extra = col.others(row, "prompt", "chosen", "rejected")
        return Example(prompt=prompt, responses=(chosen, rejected), add_eos=False, columns=extra)


@attrs.frozen(kw_only=True)
class Unpaired(DatasetStrategy):
    """Columns prompt and completion, as text or as messages, and the boolean label of the completion.

    Messages with the completion as the last of them, in column messages, will do without these two.
    """

    name: ClassVar[str] = "unpaired"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})

    @classmethod
    def recognises(cls, row: Mapping[str, Any]) -> bool:
        """Return whether a row has a label, and either prompt and completion or messages."""
        has_both = first_of(row, "prompt") and first_of(row, "completion")
        has_either = has_both or (not first_of(row, "prompt", "completion") and is_messages(row.get("messages")))
        return row.get("label") is not None and bool(has_either) and not has_system_beside(row)

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the labelled completion."""
        prompt: Text
        completion: Text
        if row.get("completion") is None and row.get("messages") is not None:
            used: tuple[str, ...] = ("messages",)
            prompt, completion = col.split_conversation(row["messages"], "messages")
        else:
            used = ("prompt", "completion")
            prompt = col.check_prompt(col.read(row, "prompt"), "prompt")
            completion = col.check_response(col.read(row, "completion"), "completion")
            col.same_kind(prompt, completion, "completion")
        label, notes = col.read_label(row, "label")
        extra = col.others(row, *used, "label", "tools")
        return Example(prompt=prompt, responses=(completion,), label=label, tools=col.read_tools(row), columns=extra, notes=notes)


BUILTIN: list[type[DatasetStrategy]] = [
    Preference,
    PreferencePrompt,
    PreferenceChosen,
    PreferenceLabels,
    PromptText,
    ResponseText,
    Passthrough,
    Unpaired,
    Ranked,
    RankedPairs,
]
"""The formats that core registers."""

_FUNCTION_ROWS: Mapping[Layout, DatasetStrategy] = {
    Layout.PAIRED: Preference(),
    Layout.LABELED: Unpaired(),
    Layout.RANKED: Ranked(),
    Layout.ROLLOUT: PromptText(),
    Layout.SINGLE: ResponseText(),
}


@attrs.frozen(kw_only=True)
class FunctionStrategy:
    """A user's function `file.function` as a format: `fn(cfg, dataset_idx=i)` returns what turns a row into another row.

    That is `transform_fn`, or `(transform_fn, {"remove_columns": [names] or "__all__"})`. The row that `transform_fn(example)`
    returns, laid over the remaining columns of the example, is read as a `preference`, `unpaired`, `ranked` or `text` row, as
    the run's layout asks. `transform_fn` gets `tokenizer=` or `processing_class=` if it names that parameter.
    """

    name: str
    base_dir: Path = attrs.field(default=Path(), metadata={"internal": True})

    layouts: ClassVar[frozenset[Layout]] = frozenset(_FUNCTION_ROWS)

    def bind(
        self, *, layout: Layout, config: Any, dataset_idx: int, tokenizer: Any
    ) -> Callable[[Mapping[str, Any]], Example | Sequence[Example]]:
        """Call the user's function and return `parse` for the rows of one dataset.

        Raises ConfigError where the function cannot be found, loaded or called, or returns something else.
        """
        source = find_function(self.name, self.base_dir)
        function = load_function(source)
        try:
            result = function(config, dataset_idx=dataset_idx)
        except Exception as error:
            raise ConfigError(
                f"data.format {self.name}: {describe_failure(error, source)}, in {source.function}(cfg, dataset_idx=…)"
            ) from error
        transform, options = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        if not callable(transform) or not isinstance(options, Mapping):
            raise ConfigError(
                f"data.format {self.name}: {source.function}(cfg, dataset_idx=…) in {source.file} must return transform_fn, or "
                f'(transform_fn, {{"remove_columns": [...]}}), got {col.shorten(result)}'
            )
        removed = options.get("remove_columns") or ()
        if isinstance(removed, str) and removed != "__all__":
            raise ConfigError(f'data.format {self.name}: remove_columns must be a list of columns or "__all__", got {removed!r}')
        passed = {key: tokenizer for key in ("tokenizer", "processing_class") if key in _parameters(transform)}

        def parse(row: Mapping[str, Any]) -> Example | Sequence[Example]:
            try:
                changed = transform(copy.deepcopy(dict(row)), **passed)
            except RowError:
                raise
            except Exception as error:
                raise RowError(f"{describe_failure(error, source)}, in the transform of {self.name}") from error
            if not isinstance(changed, Mapping):
                raise RowError(
                    f"the transform of {self.name} ({source.file}) must return a row (a dict), got {col.shorten(changed)}"
                )
            kept = {} if removed == "__all__" else {column: value for column, value in row.items() if column not in removed}
            return _FUNCTION_ROWS[layout].parse({**kept, **changed})

        return parse

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Refuse: a function needs the run's layout and tokenizer, which `bind` takes."""
        raise TypeError(f"{self.name} is a function: FunctionStrategy.bind(...) gives its parse")


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:  # a builtin without a signature
        return frozenset()


def _read_pair(row: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = col.read(row, "chosen"), col.read(row, "rejected")
    if row.get("prompt") is None:
        return _split_pair(chosen, rejected)
    prompt = col.check_prompt(row["prompt"], "prompt")
    if _is_conversation(chosen) and _is_conversation(rejected):
        return _split_repeated(_as_turns(prompt), chosen, rejected)
    sides = col.check_response(chosen, "chosen"), col.check_response(rejected, "rejected")
    for side, column in zip(sides, ("chosen", "rejected"), strict=True):
        col.same_kind(prompt, side, column)
    col.check_differ(*sides)
    return prompt, *sides


def _is_conversation(side: Any) -> bool:
    return isinstance(side, Sequence) and not isinstance(side, str) and len(side) > 1


def _as_turns(prompt: Text) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def _split_repeated(prompt: tuple[Message, ...], chosen: Any, rejected: Any) -> tuple[Text, Text, Text]:
    """Return a pair whose sides are whole conversations that begin with the prompt."""
    for side, column in ((chosen, "chosen"), (rejected, "rejected")):
        begin = col.check_messages(side, column)[:-1]
        if begin != prompt:
            index = next((i for i, (a, b) in enumerate(zip(begin, prompt, strict=False)) if a != b), min(len(begin), len(prompt)))
            found, wanted = (col.shorten(turns[index]) if index < len(turns) else "no turn" for turns in (begin, prompt))
            raise RowError(
                f"{column} does not repeat the prompt before its last message: {column}[{index}] is {found}, the prompt has "
                f"{wanted}; leave out column 'prompt' if both sides begin alike, or only the last message of chosen and rejected"
            )
    return _split_pair(chosen, rejected)


def _split_pair(chosen: Any, rejected: Any) -> tuple[Text, Text, Text]:
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError(
            "column 'prompt' is missing; it is optional only where chosen and rejected are lists of messages that begin alike"
        )
    return col.split_pair(chosen, rejected)
