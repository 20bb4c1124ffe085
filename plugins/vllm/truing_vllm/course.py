"""What one completion met with on its way, by which its faults are told from those of the run and from what passes."""

from __future__ import annotations

import attrs

from truing import RolloutError
from truing_vllm.faults import AbsentError, BadAnswerError, LateError, RefusedError, ServerFault, UnreachableError, remedy
from truing_vllm.server import Server

TRIES = 4
"""How often something is tried that fails on a server that is there."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between tries; each pause is twice the one before."""


def pause_before(attempt: int) -> float:
    """Return the seconds to wait before a try, counted from 1."""
    return min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** (attempt - 1))


@attrs.define(eq=False)
class Course:
    """What one completion met with so far."""

    timeout: float
    """Seconds that no server may take the request."""
    asked: float = 0.0
    failures: int = 0
    spoilt: int = 0
    """How many answers of a server could not be used."""
    deaths: int = 0
    """How often a server was gone that had taken the request."""
    trouble: float | None = None
    """Since when no server took the request."""
    hung: set[Server] = attrs.field(factory=set)
    problem: str = ""

    def gives_up(self, fault: ServerFault, server: Server, now: float) -> bool:
        """Return whether a fault is one of this completion, not to be asked for again. Raises RolloutError for one of the run."""
        self.problem = str(fault)
        if (advice := remedy(fault)) is not None:
            raise RolloutError(f"{fault}; {advice}") from fault
        if isinstance(fault, RefusedError):
            return True
        if isinstance(fault, LateError):
            return self._was_late(server)
        self.failures += 1
        if isinstance(fault, BadAnswerError):
            self.spoilt += 1
            return self.spoilt >= TRIES
        if isinstance(fault, UnreachableError) and not isinstance(fault, AbsentError):
            self.trouble, self.deaths = None, self.deaths + 1
            if self.deaths >= TRIES:
                return True
        if self.trouble is None:
            self.trouble = now
        if now - self.trouble > self.timeout:
            raise RolloutError(f"no vLLM server could be used for {self.timeout:.0f} s; the last: {fault}") from fault
        return False

    def _was_late(self, server: Server) -> bool:
        """Return whether it is this request that takes too long: the server answered others since, or once it was looked at."""
        if server.answered >= self.asked or server in self.hung:
            return True
        self.hung.add(server)
        return False
