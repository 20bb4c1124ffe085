"""The run directory: what a run leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

import truing
from truing.errors import ConfigError, SetupError
from truing.redact import redacted

CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.jsonl"
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


@attrs.frozen
class RunDir:
    """Paths of a run directory, and writing into them."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.path / "model"

    def claim(self, *, resume: bool) -> None:
        """Make the directory. Raises ConfigError when another run left something there, SetupError when it cannot be written."""
        if not resume and any(path.exists() for path in (self.path / METRICS, self.checkpoints, self.model)):
            raise ConfigError(
                f"output.dir: {self.path} holds another run; continue it with --resume, or choose another directory "
                f"(output.dir={self.path}-2)"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise SetupError(f"output.dir: {self.path} cannot be written: {error.strerror}; choose another output.dir") from error

    def require_space(self, needed: int) -> None:
        """Raise SetupError when the disk has less than `needed` bytes free."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise SetupError(
                f"{self.path}: the model and a checkpoint need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
                "free some space, or choose another output.dir"
            )

    def write_config(self, text: str) -> None:
        """Write the resolved configuration."""
        (self.path / CONFIG).write_text(text)

    def write_environment(self, **facts: Any) -> None:
        """Write what the run depended on: versions, machine, and the given facts."""
        environment = {
            "truing": truing.__version__,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
            **facts,
        }
        (self.path / ENVIRONMENT).write_text(json.dumps(redacted(environment), indent=1, default=str) + "\n")

    def append_metrics(self, line: Mapping[str, float]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewrite_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Make metrics.jsonl say what `history` says; lines after the checkpoint that a run resumes from go."""
        (self.path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in history))
