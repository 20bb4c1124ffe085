"""KTO: alignment from single completions, each labelled desirable or undesirable."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_kto.kto import KTO

__all__ = ["KTO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the method `kto`."""
    return [KTO]
