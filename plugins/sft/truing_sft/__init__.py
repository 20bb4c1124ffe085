"""SFT: supervised fine-tuning on completions, on all assistant turns, or on everything."""

from __future__ import annotations

from truing import Loss, hookimpl
from truing_sft.sft import SFT

__all__ = ["SFT", "register_loss"]


@hookimpl
def register_loss() -> list[type[Loss]]:
    """Register the method `sft`."""
    return [SFT]
