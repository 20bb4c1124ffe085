"""What can go wrong with a server, by what is to be done about it."""

from __future__ import annotations


class ServerFault(Exception):
    """A server did not do what it was asked."""


class UnreachableError(ServerFault):
    """It is not there, or hung up: it may come back, with its weights or without."""


class AbsentError(UnreachableError):
    """It took no connection, so that nothing was begun."""


class BusyError(ServerFault):
    """It has no room now."""


class BadAnswerError(ServerFault):
    """It failed, or its answer cannot be used; once more may help."""


class RefusedError(ServerFault):
    """It will not do this, however often it is asked."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NoRouteError(RefusedError):
    """It was started without what is asked for."""


class StaleError(ServerFault):
    """It sampled from weights that are not the policy's."""


class LateError(ServerFault):
    """It did not finish within its time."""


def remedy(fault: ServerFault) -> str | None:
    """Return what somebody has to do about a fault that nothing else mends; None for any other."""
    if isinstance(fault, NoRouteError):
        return (
            "start it by `truing vllm-serve` with the run's configuration, or as docs/how-to/serve-rollouts-with-vllm.md says of "
            "servers that are started by hand"
        )
    if isinstance(fault, RefusedError) and fault.status in (401, 403):
        return "set rollout.token, or the environment's TRUING_VLLM_TOKEN, to the token that it asks for"
    return None
