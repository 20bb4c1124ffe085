"""What core hands to a plugin's `open`, for those plugins that hold something alive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@attrs.frozen(eq=False, kw_only=True)
class OpenContext:
    """The run that a plugin is opened for."""

    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    run_dir: Path
    seed: int
    models: Mapping[str, Any] = attrs.field(factory=dict)
    """Unwrapped models by role: "policy", and "reference", "critic" where the method needs them."""
    rank: int = 0
    """Which of the run's processes this is; the first is 0."""
    num_ranks: int = 1
    """How many processes the run has."""
    environment_timeout: float = 60.0
    """Seconds that an environment may take to answer (rollout.environment_timeout)."""
    config_dir: Path = Path()
    """The folder of the configuration file, which relative names in it refer to."""
