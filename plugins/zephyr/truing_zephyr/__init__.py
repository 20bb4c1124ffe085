"""The data that Zephyr and Starling were aligned with: ranked answers in Zephyr's markup."""

from __future__ import annotations

from truing import DatasetStrategy, hookimpl
from truing_zephyr.nectar import Nectar, NectarPrompt

__all__ = ["Nectar", "NectarPrompt", "register_dataset_strategy"]


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register `zephyr.nectar`."""
    return [Nectar, NectarPrompt]
