"""What a server calls the weights that a run gave it, by which every process of the run knows which tokens count."""

from __future__ import annotations

import attrs

UNPROVEN = "?"
"""What a label begins with until a probe showed the weights to be right."""


@attrs.frozen
class Label:
    """One try to give a server one version of the weights."""

    run: str
    """Which start of which run; another start may have other weights of the same version."""
    attempt: int
    """Counts the tries with this server."""
    version: int
    proven: bool = False

    def __str__(self) -> str:
        return f"{'' if self.proven else UNPROVEN}{self.run}-{self.attempt}-{self.version}"

    @classmethod
    def read(cls, text: str, run: str) -> Label | None:
        """Return the label that a server gives; None where it is not of this start of the run."""
        owner, *numbers = text.removeprefix(UNPROVEN).rsplit("-", 2)
        if owner != run or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            return None
        return cls(run, int(numbers[0]), int(numbers[1]), proven=not text.startswith(UNPROVEN))
