"""Runs model-written code against tests, each time in a fresh process that truing_rewards.sandbox has made harmless."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from truing import SetupError
from truing_rewards import harness, sandbox

LONGEST_OUTPUT = 2**20


def passing(code: str, tests: Sequence[str], limits: Mapping[str, int]) -> set[int]:
    """Return the numbers of the tests that pass behind the code; `limits` are the settings of `python_tests`.

    Raises SetupError where the code cannot be isolated, and was not run.
    """
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="truing-tests-") as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps({"code": code, "tests": tests, "secret": secret}).encode())
        given.seek(0)
        command = [sys.executable, "-I", "-S", "-B", sandbox.__file__, json.dumps({**limits, "folder": folder}), harness.__file__]
        pipes: Any = {"stdin": given, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **pipes, env={}, start_new_session=True) as process:
            try:
                output = _read(process, 2 * limits["seconds"] + 1).decode(errors="replace")
            finally:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == sandbox.UNISOLATED:
        raise SetupError(
            f"python_tests: this machine cannot isolate model-written code ({output.strip()}), as a container without user "
            "namespaces cannot; run elsewhere, or, where nothing can be lost, set allow_unisolated: true"
        )
    words = [line.split() for line in output.splitlines()]
    return {int(line[1]) for line in words if len(line) == 2 and line[0] == secret}


def _read(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return what the process says until it ends, or its time does, or it says too much."""
    assert process.stdout is not None
    deadline, output = time.monotonic() + seconds, b""
    while len(output) < LONGEST_OUTPUT:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(process.stdout.fileno(), 2**16) if ready else b""
        if not part:
            break
        output += part
    return output
