"""GDPO: group-relative optimisation of several rewards, each normalised by itself."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_gdpo.gdpo import GDPO

__all__ = ["GDPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the method `gdpo`."""
    return [GDPO]
