"""What backends, environments and policies say, as data that can be sent, kept and written."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

DEEPEST = 32
"""How far lists and mappings are followed; what lies deeper is shown as text."""
_SHOWN = reprlib.Repr()
_SHOWN.maxother = _SHOWN.maxlong = 200


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as data: None, truth, numbers, well-formed text, lists, and mappings with text as keys.

    Integers beyond 64 bits become text, as does everything that is no data, shortened.
    """
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return int(value)
    if depth < DEEPEST and isinstance(value, Mapping):
        return {well_formed(str(key)): plain(one, depth + 1) for key, one in value.items()}
    if depth < DEEPEST and isinstance(value, list | tuple):
        return [plain(one, depth + 1) for one in value]
    try:
        return well_formed(_SHOWN.repr(value))
    except Exception:  # such as of an integer of more digits than Python writes
        return f"<{type(value).__name__}>"


def well_formed(text: str) -> str:
    """Return text with a replacement character for each half of a surrogate pair that stands alone, which no encoding has."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
