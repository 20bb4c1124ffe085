"""Finds files and folders that a configuration names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from truing.suggest import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def local_path(name: str, base_dir: Path) -> Path | None:
    """Return the file or folder: beside the configuration, else in the working directory; None where neither exists."""
    written = Path(name).expanduser()
    try:
        return next((path for path in (base_dir / written, written) if path.exists()), None)
    except OSError:  # longer than a file's name can be
        return None


def cache_folder() -> Path:
    """Return where files are that may be deleted at any time: what `TRUING_CACHE` names, or ~/.cache/truing."""
    return Path(os.environ.get("TRUING_CACHE") or Path.home() / ".cache" / "truing")


def may_be_hub_id(name: str) -> bool:
    """Return whether a name could be a repository of the hub: `name` or `owner/name`."""
    return _HUB_ID.fullmatch(name) is not None


def where_looked(name: str, base_dir: Path) -> str:
    """Return, for an error, the path that was looked for and the file beside it with the nearest name."""
    path = (base_dir / Path(name).expanduser()).absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    missing = path.relative_to(folder).parts[0]
    names = sorted(entry.name for entry in folder.iterdir())
    if missing != path.name:
        return f"{path} (no {missing!r} in {folder}{did_you_mean(missing, names)})"
    return f"{path}{did_you_mean(missing, names)}"
