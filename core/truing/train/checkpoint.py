"""Checkpoints: safetensors and JSON, sealed by a manifest of hashes, never half written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import truing
from truing.errors import ConfigError, SetupError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(
    folder: Path,
    step: int,
    numbers: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    *,
    identity: Mapping[str, Any],
    keep: int | None,
) -> Path:
    """Write a checkpoint under `folder` and return its path.

    It is written beside its place, fsynced, sealed by a manifest and renamed, so that a kill at any instant leaves it whole or
    absent. At most `keep` checkpoints stay, the newest. `identity` says by JSON values which run it belongs to. Raises SetupError
    when it cannot be written; the checkpoints before it stay as they are.
    """
    final = folder / f"step-{step:08d}"
    draft = folder / f".writing-{final.name}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        _write_draft(draft, step, numbers, tensors, identity)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise SetupError(
            f"checkpoint {final} cannot be written: {error}; the ones before it are whole. Free space, or choose another "
            "output.dir, and go on with --resume"
        ) from error
    for old in list_checkpoints(folder)[: -keep if keep else 0]:
        shutil.rmtree(old)
    return final


def put_aside_after(folder: Path, step: int) -> None:
    """Rename the checkpoints of later steps, which belong to a course that the run now leaves, or are damaged."""
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix("step-")) > step:
            aside = path.with_name(f".superseded-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _write_draft(
    draft: Path, step: int, numbers: dict[str, Any], tensors: dict[str, dict[str, Tensor]], identity: Mapping[str, Any]
) -> None:
    draft.mkdir(parents=True)
    _write(draft / "state.json", json.dumps(numbers).encode())
    for name, table in tensors.items():
        path = draft / f"{name}.safetensors"
        save_file({key: tensor.contiguous().cpu().clone() for key, tensor in table.items()}, path)
        _sync(path)
    manifest = {
        "step": step,
        "truing": truing.__version__,
        "identity": dict(identity),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(draft.iterdir())},
    }
    _write(draft / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync(draft)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, naming the file, or None when it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, seal in manifest["files"].items():
            if (path / name).stat().st_size != seal["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {seal['bytes']}"
            if _sha256(path / name) != seal["sha256"]:
                return f"the contents of {name} have changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} or a file that it names cannot be read ({error})"
    return None


def require_same_run(path: Path, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming what differs, unless a whole checkpoint belongs to this run."""
    saved = json.loads((path / MANIFEST).read_text())["identity"]
    differing = [f"{key} ({saved.get(key)}, now {value})" for key, value in identity.items() if saved.get(key) != value]
    if differing:
        raise ConfigError(
            f"{path} belongs to a run with other {', '.join(differing)}; resume with what that run had, or start anew in another "
            "output.dir"
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the numbers and tensors of a checkpoint that `damage` found whole."""
    numbers: dict[str, Any] = json.loads((path / "state.json").read_text())
    return numbers, {file.stem: load_file(file) for file in path.glob("*.safetensors")}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
