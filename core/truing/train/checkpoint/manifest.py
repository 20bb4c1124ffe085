"""The manifest of a checkpoint: written last, it says what makes the checkpoint whole and which run it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import xxhash

from truing.train.checkpoint.files import Seal, is_plain_file, seal_of

MANIFEST = "manifest.json"
FORMAT = 1
MOST_MANIFEST_BYTES = 16 << 20
MOST_JSON_BYTES = 1 << 30
"""Beyond these a file is not one that a run wrote, and reading it might take all memory."""
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\.(safetensors|json|jsonl)")
_FOLDER_NAME = re.compile(r"step-(\d{8,})")


class DamagedError(ValueError):
    """A checkpoint is not what was written; the message names the file at fault."""


@attrs.frozen(kw_only=True)
class Manifest:
    """What a checkpoint consists of, and what it depends on."""

    step: int = attrs.field(validator=attrs.validators.instance_of(int))
    world_size: int = attrs.field(validator=attrs.validators.instance_of(int))
    sharded: bool = attrs.field(validator=attrs.validators.instance_of(bool))
    """Whether each rank's weights are in files of its own, so that as many ranks must resume."""
    identity: Mapping[str, Any] = attrs.field(validator=attrs.validators.instance_of(dict))
    """What a run must share with this one to resume from it."""
    config: Mapping[str, Any] = attrs.field(validator=attrs.validators.instance_of(dict))
    """The run's settings by dotted key."""
    libraries: Mapping[str, str] = attrs.field(validator=attrs.validators.instance_of(dict))
    files: Mapping[str, Seal]

    def render(self) -> bytes:
        """Return the manifest's file. Its first entry is a hash of the others."""
        return sealed({"format": FORMAT, **attrs.asdict(self)})

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Return what `render` gave. Raises DamagedError when a single byte of it differs."""
        try:
            values = json.loads(data)
            seal, found_format = values.pop("seal"), values.pop("format")
            if found_format != FORMAT:
                raise DamagedError(f"{MANIFEST} has format {found_format!r}, and this version of truing reads format {FORMAT}")
            files = {name: Seal(**entry) for name, entry in values.pop("files").items()}
            manifest = cls(files=files, **values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise error if isinstance(error, DamagedError) else DamagedError(f"{MANIFEST} cannot be read ({error})") from error
        if manifest.render() != data:  # the seal, and whatever JSON reads over
            raise DamagedError(f"the contents of {MANIFEST} have changed since it was written (its seal is {seal!r})")
        return manifest


def sealed(body: Mapping[str, Any]) -> bytes:
    """Return JSON whose first entry is a hash of the others."""
    seal = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"seal": seal, **body}, indent=1).encode() + b"\n"


def read_sealed(file: Path) -> dict[str, Any]:
    """Return the entries of a file that `sealed` gave. Raises DamagedError when a single byte of it differs."""
    try:
        data = _read(file, MOST_JSON_BYTES)
        values: dict[str, Any] = json.loads(data)
        values.pop("seal")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, DamagedError) else DamagedError(f"{file.name} cannot be read ({error})") from error
    if sealed(values) != data:
        raise DamagedError(f"the contents of {file.name} have changed since it was written")
    return values


def _read(file: Path, most: int) -> bytes:
    if not is_plain_file(file):
        raise DamagedError(f"{file.name} is not a plain file")
    size = file.lstat().st_size
    if size > most:
        raise DamagedError(f"{file.name} has {size:,} bytes, and at most {most:,} are read")
    return file.read_bytes()


def step_of(path: Path) -> int | None:
    """Return the step that a checkpoint's folder is named for; None when it is no checkpoint's name."""
    match = _FOLDER_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the checkpoint at `path`. Raises DamagedError; the other files are not looked at."""
    try:
        return Manifest.parse(_read(path / MANIFEST, MOST_MANIFEST_BYTES))
    except OSError as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error.strerror or error})") from error


def verify(path: Path, *, contents: bool = True) -> Manifest:
    """Return the manifest of a checkpoint that is whole. Raises DamagedError, naming the file at fault.

    Without `contents`, files must be there with the right sizes, and are not read.
    """
    manifest = read_manifest(path)
    named = step_of(path)
    if named is not None and named != manifest.step:
        raise DamagedError(f"{MANIFEST} is of step {manifest.step}, and the folder's name of step {named}")
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name):
            raise DamagedError(f"{MANIFEST} names {name!r}; a checkpoint has files of its own folder, .safetensors and .json only")
    try:
        extra = sorted({entry.name for entry in path.iterdir()} - {*manifest.files, MANIFEST})
        if extra:
            raise DamagedError(f"{extra[0]} is not a file that {MANIFEST} names, and nothing else is read; remove it")
        for name, seal in manifest.files.items():
            check_file(path / name, seal, contents=contents)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        raise DamagedError(f"{name} cannot be read ({error.strerror or error})") from error
    return manifest


def check_file(file: Path, seal: Seal, *, contents: bool = True) -> None:
    """Raise DamagedError unless a file is a plain one with this seal; without `contents`, of its size. Raises OSError."""
    name = file.name
    if not is_plain_file(file):
        raise DamagedError(f"{name} is not a plain file")
    size = file.lstat().st_size
    if size != seal.bytes:
        raise DamagedError(f"{name} has {size:,} bytes instead of {seal.bytes:,}")
    if file.suffix != ".safetensors" and size > MOST_JSON_BYTES:
        raise DamagedError(f"{name} has {size:,} bytes, and at most {MOST_JSON_BYTES:,} are read")
    if contents and seal_of(file) != seal:
        raise DamagedError(f"the contents of {name} have changed since it was written")
