"""The format `user_defined`: columns and text as the configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from truing import DatasetStrategy, Example, Layout, setting
from truing.data import columns as col
from truing_user_defined.template import Template


@attrs.frozen(kw_only=True)
class _UserDefined(DatasetStrategy):
    """The prompt, which every one of these formats has."""

    name: ClassVar[str] = "user_defined"
    field_prompt: str = setting("prompt", help="Column of the prompt.")
    field_system: str = setting("system", help="Column of the system prompt; missing, null and empty are the same.")
    prompt_format: str = setting("{prompt}", help="Text of the prompt, with {prompt} and {system} for the columns.")

    def __attrs_post_init__(self) -> None:
        self._templates()

    def _templates(self) -> Mapping[str, Template]:
        """Return the format strings, read, by the names of what they make."""
        return {"prompt": Template.read(self.prompt_format, "prompt_format", ("prompt", "system"))}

    def _example(self, row: Mapping[str, Any], *, used: tuple[str, ...] = (), **responses: str) -> Example:
        """Return the prompt, and responses out of their columns; `used` columns go no further."""
        templates = self._templates()
        values = {"prompt": col.read_string(row, self.field_prompt), "system": col.read_optional(row, self.field_system)}
        written = tuple(templates[part].fill({part: col.read_string(row, column)}) for part, column in responses.items())
        ends = {templates[part].end for part in responses}
        return Example(
            prompt=templates["prompt"].fill(values),
            responses=written,
            turn_end=ends.pop() if len(ends) == 1 else "",
            columns=col.others(row, self.field_prompt, self.field_system, *responses.values(), *used),
        )


@attrs.frozen(kw_only=True)
class UserDefined(_UserDefined):
    """A prompt and two responses, in text around them of your own."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: str = setting("chosen", help="Column of the better response.")
    field_rejected: str = setting("rejected", help="Column of the worse response.")
    chosen_format: str = setting("{chosen}", help="Text of the better response, with {chosen} for the column.")
    rejected_format: str = setting("{rejected}", help="Text of the worse response, with {rejected} for the column.")

    def _templates(self) -> Mapping[str, Template]:
        return {
            **super()._templates(),
            "chosen": Template.read(self.chosen_format, "chosen_format", ("chosen",)),
            "rejected": Template.read(self.rejected_format, "rejected_format", ("rejected",)),
        }

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the pair, with its `margin` where the row has one."""
        example = self._example(row, used=("margin",), chosen=self.field_chosen, rejected=self.field_rejected)
        chosen, rejected = example.responses
        col.check_differ(chosen, rejected, (self.field_chosen, self.field_rejected))
        return attrs.evolve(example, margin=col.read_margin(row))


@attrs.frozen(kw_only=True)
class UserDefinedPrompt(UserDefined):
    """A prompt in text of your own; the columns of a pair's responses need not be there."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.ROLLOUT})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt alone."""
        return self._example(row, used=(self.field_chosen, self.field_rejected, "margin"))


@attrs.frozen(kw_only=True)
class UserDefinedCompletion(_UserDefined):
    """A prompt and a response, in text around them of your own."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE})
    field_completion: str = setting("completion", help="Column of the response.")
    completion_format: str = setting("{completion}", help="Text of the response, with {completion} for the column.")

    def _templates(self) -> Mapping[str, Template]:
        return {
            **super()._templates(),
            "completion": Template.read(self.completion_format, "completion_format", ("completion",)),
        }

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt and its response."""
        return self._example(row, completion=self.field_completion)


@attrs.frozen(kw_only=True)
class UserDefinedLabeled(UserDefinedCompletion):
    """A prompt, a response and whether the response is desirable, in text around them of your own."""

    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.LABELED})
    field_label: str = setting("label", help="Column that says whether the response is desirable: true or false.")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the labelled response."""
        label, notes = col.read_label(row, self.field_label)
        example = self._example(row, used=(self.field_label,), completion=self.field_completion)
        return attrs.evolve(example, label=label, notes=notes)


def _named_default(cls: type[Any]) -> type[DatasetStrategy]:
    """Return the same format under its longer name."""
    body = {"__module__": __name__, "__doc__": cls.__doc__, "name": "user_defined.default"}
    made: type[DatasetStrategy] = attrs.frozen(kw_only=True)(type(f"{cls.__name__}Default", (cls,), body))
    return made


_CLASSES: tuple[type[Any], ...] = (UserDefined, UserDefinedPrompt, UserDefinedCompletion, UserDefinedLabeled)
FORMATS: list[type[DatasetStrategy]] = [*_CLASSES, *map(_named_default, _CLASSES)]
"""The format classes: one for each name and layout."""
