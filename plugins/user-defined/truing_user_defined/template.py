"""Format strings in which a name in braces stands for a column's text, and nothing else is special."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import attrs

from truing.suggest import did_you_mean


@attrs.frozen
class Template:
    """A format string, read: literal text, each piece with the placeholder after it."""

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def read(cls, text: str, key: str, allowed: Sequence[str]) -> Template:
        """Read a format string. Raises ValueError, with the setting's name `key`, where it is not one, or lacks `allowed[0]`."""
        known = ", ".join(f"{{{name}}}" for name in allowed)
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{key} is {text!r}: {error}; write {{{{ and }}}} for braces, and {known} for the columns") from None
        for _, name, spec, conversion in parsed:
            if name is not None and name not in allowed:
                meant = did_you_mean(name, allowed)
                raise ValueError(
                    f"{key} is {text!r} and has the placeholder {{{name}}}{meant or '.'} Known: {known}; {{{{ is a brace"
                )
            if spec or conversion:
                raise ValueError(f"{key} is {text!r}: {{{name}}} takes no conversion and no format; write just {{{name}}}")
        if allowed[0] not in [name for _, name, *_ in parsed]:
            raise ValueError(f"{key} is {text!r} and lacks {{{allowed[0]}}}, so that it would be the same text for every row")
        return cls(tuple((literal, name) for literal, name, *_ in parsed))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with the values in place. Braces within them are text."""
        return "".join(literal + ("" if name is None else values[name]) for literal, name in self.pieces)

    @property
    def end(self) -> str:
        """The text after the last placeholder."""
        literal, name = self.pieces[-1]
        return literal if name is None else ""
