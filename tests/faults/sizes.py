"""How much is tried: a sample by default, everything with TRUING_FAULTS=full (`make test-faults`)."""

from __future__ import annotations

import os

import pytest

FULL = os.environ.get("TRUING_FAULTS") == "full"

only_full = pytest.mark.skipif(not FULL, reason="of the whole suite only: make test-faults")


def portions(full: int, sample: int, size: int) -> list[range]:
    """Return the numbers of all cases, cut into tests of `size`."""
    count = full if FULL else sample
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def named(numbers: range) -> str:
    """Return the name of a portion, for a test's id."""
    return f"{numbers.start}-{numbers.stop - 1}"
