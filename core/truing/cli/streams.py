"""The program's output without secrets: what is printed, logged or warned of by whatever runs within it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO

from truing.redact import redact


class RedactedStream(io.TextIOBase):
    """A text stream that writes to another one, each text without the secrets in it."""

    # TextIOBase has these read-only, unless a class has them too
    encoding: str = "utf-8"
    errors: str | None = None

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding, self.errors = stream.encoding, stream.errors

    def write(self, text: str) -> int:
        """Write text, redacted."""
        self.stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream beneath."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream beneath is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor beneath."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True


@contextlib.contextmanager
def without_secrets() -> Iterator[None]:
    """Redact what is written to standard output and standard error."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    ours = {name: RedactedStream(stream) for name, stream in before.items() if stream is not None}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            if getattr(sys, name) is stream:  # click puts another one in its place when the reader has gone away
                setattr(sys, name, before[name])


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """Write to standard output unredacted within `without_secrets`: what is shown is data, and must be exact."""
    stream = sys.stdout
    with contextlib.redirect_stdout(stream.stream if isinstance(stream, RedactedStream) else stream):
        yield
