"""CPO and SimPO: contrastive preference optimisation without a reference."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_cpo.cpo import CPO, SimPO

__all__ = ["CPO", "SimPO", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the methods `cpo` and `simpo`."""
    return [CPO, SimPO]
