"""Runs a solution and its tests in a process that has given up everything else; says which passed.

Reads JSON from its input: `code`, `tests`, and `secret`, a word that a line of the output must begin with to count. Run as a
script, with no more than the standard library.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Write a line for each test that passed, as soon as it has."""
    given = json.load(sys.stdin)
    output = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    Path("solution.py").write_text(given["code"])
    names = runpy.run_path("solution.py", run_name="solution")
    for number, test in enumerate(given["tests"]):
        Path("test.py").write_text(test)
        try:
            runpy.run_path("test.py", init_globals=names, run_name="test")
        except BaseException:  # sys.exit, too, is no pass
            continue
        os.write(output, f"{given['secret']} {number}\n".encode())


if __name__ == "__main__":
    main()
