"""The reward `python_tests`: whether the code that a model wrote passes the row's tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import attrs

from truing import Completion, Reward, SetupError, setting
from truing_rewards.reading import accepted, after_think, column

AT_ONCE = 4
"""How many completions of a call are tested at the same time."""
_FENCE = re.compile(r"^```[ \t]*(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


@attrs.frozen(kw_only=True)
class PythonTests(Reward):
    """1 where the code in a completion passes all tests of its row, 0 where it does not; None where the row has no test.

    The code is the last block between ``` lines behind the last </think>, or all of that text where there is no block. A test is
    Python that fails by raising, such as `assert add(1, 2) == 3`; it sees the names that the code defines. Code and tests run in a
    fresh process without network that sees no other process, can read files but write none outside of an empty folder, and can
    start no process or thread, within limits of time, memory and file size. It needs Linux 5.12 on x86-64 or Arm, with user
    namespaces; where they are not to be had, the run does not start unless `allow_unisolated` is set.

    Tests run in the process of the code that they test. Code that is written to deceive them, by looking for the harness in its own
    process, can; look at samples.
    """

    name: ClassVar[str] = "python_tests"

    tests_column: str = setting("tests", help="Column with the tests: Python text, or a list of such.")
    partial: bool = setting(False, help="Whether the score is the share of tests that pass.")
    seconds: int = setting(5, gt=0, help="Seconds of processor time for the tests of a completion; by the clock, twice as many.")
    memory_mb: int = setting(512, gt=0, help="Memory of the process, in MiB.")
    file_mb: int = setting(4, gt=0, help="Size of a file that it may write, in MiB; of all of them, four times as much.")
    allow_unisolated: bool = setting(
        False, help="Run where the machine cannot isolate, with limits alone: the code may use the network and change your files."
    )

    def prepare(self) -> None:
        """Try whether this machine can isolate. Raises SetupError where it cannot and `allow_unisolated` is not set."""
        if self._passing("", ["pass"]) != {0}:
            raise SetupError(
                f"python_tests: an empty program does not end within seconds ({self.seconds}) and memory_mb ({self.memory_mb}); "
                "raise them"
            )

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the score of each."""
        from concurrent.futures import ThreadPoolExecutor

        tests = map(accepted, column(self.name, self.tests_column, completions))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(self._score, completions, tests))

    def _score(self, completion: Completion, tests: Sequence[str]) -> float | None:
        if not tests:
            return None
        passed = len(self._passing(code_of(completion.text), tests)) / len(tests)
        return passed if self.partial else float(passed == 1)

    def _passing(self, code: str, tests: Sequence[str]) -> set[int]:
        from truing_rewards.isolated import passing

        limits = ("seconds", "memory_mb", "file_mb", "allow_unisolated")
        return passing(code, tests, {name: getattr(self, name) for name in limits})


def code_of(text: str) -> str:
    """Return the last block of code behind the thoughts; all of the text where there is none."""
    text = after_think(text)
    return str((_FENCE.findall(text) or [text])[-1])
