"""ORPO: preference optimisation by odds ratios, beside supervised fine-tuning, without a reference."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_orpo.orpo import ORPO

__all__ = ["ORPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the method `orpo`."""
    return [ORPO]
