"""The real OpenEnv, in an environment of its own: built once, and served for a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

VERSION = "0.10.0"
FOLDER = Path.home() / ".cache" / "truing" / "rollouts" / "openenv"
PYTHON = FOLDER / "bin" / "python"
DONE = FOLDER / "installed"
"""Holds the version that is installed whole."""
START_SECONDS = 120.0
BUILD_SECONDS = 2400
"""How long the first test may take, which builds it."""


def is_built() -> bool:
    """Return whether the environment is there, of the version that is tested."""
    return DONE.is_file() and DONE.read_text() == VERSION


def build() -> None:
    """Make the environment, which takes minutes, unless it is there."""
    if is_built():
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True, timeout=300)
    install = [PYTHON, "-m", "pip", "install", "-q", f"openenv=={VERSION}"]
    subprocess.run(install, check=True, timeout=1800)
    DONE.write_text(VERSION)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(script: Path, log: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield the address and the process of a server of ours that `script` starts, when it answers; end it afterwards."""
    port = free_port()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **settings}
    with log.open("wb") as output:
        process = subprocess.Popen([PYTHON, script, "--port", str(port)], stdout=output, stderr=output, env=environment)
        try:
            _wait_until_healthy(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()
            process.wait(20)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), opener.open(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no answer from {url}/health within {START_SECONDS:g} s: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    build()
