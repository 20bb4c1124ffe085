"""Tiny runs for every test, children that no test leaves behind, and a table of what was tried."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from tests.faults.children import running
from tests.faults.runs import SMALLEST, Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny run, the same for all tests of a process, so that its unbroken ends are computed once."""
    return Tiny.make(tmp_path_factory.mktemp("tiny"), model=SMALLEST)


@pytest.fixture(autouse=True)
def no_child_is_left():
    """End children that a failed test has not waited for."""
    yield
    for pid in list(running):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        del running[pid]


@pytest.fixture
def tally(record_property):
    """Count what was tried, and what came of it, for the table at the end."""

    def count(kind, **counts):
        record_property("faults", (kind, counts))

    return count


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that nothing waits for it at the end."""
    items.sort(key=lambda item: not item.path.name.startswith("test_soak"))


def pytest_terminal_summary(terminalreporter):
    """Print the counts of all tests together."""
    table = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "faults":
                kind, counts = value
                table.setdefault(kind, Counter()).update(counts)
    for kind in sorted(table):
        terminalreporter.write_line(f"{kind}: {', '.join(f'{count:g} {name}' for name, count in table[kind].items())}")
