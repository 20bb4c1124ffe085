"""The errors that a user can cause. Each says what was wrong, the value, what is allowed and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TruingError(Exception):
    """A failure with a message for the user; the command line prints it without a traceback and exits `exit_code`."""

    exit_code = 1


class ConfigError(TruingError):
    """The configuration, an argument or a path that it names is wrong."""

    exit_code = 2


class DataError(TruingError):
    """A dataset, or a row of it, cannot be read as its format says."""

    exit_code = 2


class ModelError(TruingError):
    """A model, tokenizer or adapter does not fit what the configuration asks of it."""

    exit_code = 2


class SetupError(TruingError):
    """The machine lacks something that the run needs: a plugin, a package, memory, disk."""

    exit_code = 3


class PluginError(SetupError):
    """A plugin is missing, broken or breaks its contract."""


class RolloutError(TruingError):
    """A rollout backend cannot go on: a server that is gone, or answers wrongly. The run saves a checkpoint before it ends."""

    exit_code = 3


class RowError(ValueError):
    """Raised by a dataset strategy's `parse` for a row that it cannot read; core adds the file and the row."""


def system_error(error: Exception) -> OSError | None:
    """Return the operating system's error that an exception is, or that a library in Rust says in words; None for another."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    said = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(said[1]), os.strerror(int(said[1]))) if said else None


def first_line(error: Exception) -> str:
    """Return, for a message, the type of another library's error and the first line that it says, without its full stop."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('. ')}"


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up: by name and text, for torch has its own and is not imported here."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


@contextmanager
def naming(failed: str, said: Callable[[Exception], str] = first_line, remedy: str = "mend its code") -> Iterator[None]:
    """Turn an error of others' code into a PluginError that says what failed; ours stays as it is, and so does want of memory."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TruingError) or lacks_memory(error):
            raise
        raise PluginError(f"{failed}: {said(error)}; {remedy} (--debug shows where)") from error
