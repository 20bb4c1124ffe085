"""DPO and IPO: direct preference optimisation and the losses that grew from it."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_dpo.dpo import DPO, IPO

__all__ = ["DPO", "IPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the methods `dpo` and `ipo`."""
    return [DPO, IPO]
