"""Rows to Examples, Examples to token trees, trees to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truing.data.dataset import TreeDataset
    from truing.data.pipeline import prepare, prepare_rows
    from truing.data.recognise import with_formats
    from truing.data.report import DataReport

__all__ = ["DataReport", "TreeDataset", "prepare", "prepare_rows", "with_formats"]

_LAZY = {
    "DataReport": "report",
    "TreeDataset": "dataset",
    "prepare": "pipeline",
    "prepare_rows": "pipeline",
    "with_formats": "recognise",
}


def __getattr__(name: str) -> Any:
    """Import what needs numpy or datasets when it is first asked for."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"truing.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'truing.data' has no attribute {name!r}")
