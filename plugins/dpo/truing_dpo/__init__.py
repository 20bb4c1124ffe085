"""DPO, IPO and online DPO: direct preference optimisation and the losses that grew from it."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_dpo.dpo import DPO, IPO
from truing_dpo.online import OnlineDPO

__all__ = ["DPO", "IPO", "OnlineDPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the methods `dpo`, `ipo` and `online-dpo`."""
    return [DPO, IPO, OnlineDPO]
