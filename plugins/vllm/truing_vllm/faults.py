"""What can go wrong with a server, by what is to be done about it."""

from __future__ import annotations


class ServerFault(Exception):
    """A server did not do what it was asked."""


class UnreachableError(ServerFault):
    """It is not there, or hung up: it may come back, with its weights or without."""


class BusyError(ServerFault):
    """It has no room now."""


class BadAnswerError(ServerFault):
    """It failed, or its answer cannot be used; once more may help."""


class RefusedError(ServerFault):
    """It will not do this, however often it is asked."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StaleError(ServerFault):
    """It sampled from weights that are not the policy's."""


class LateError(ServerFault):
    """It did not finish within its time."""
