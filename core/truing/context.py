"""What core hands to a plugin's `open`, for those plugins that hold something alive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    max_staleness: int = 0
    """How many versions of the policy a completion may be behind (rollout.max_staleness)."""
    environment_timeout: float = 60.0
    """Seconds that an environment may take to answer (rollout.environment_timeout)."""
    config_dir: Path = Path()
    """The folder of the configuration file, which relative names in it refer to."""

    @property
    def policy(self) -> PreTrainedModel:
        """The policy's model, with an adapter's layers in it if there are any."""
        from peft import PeftModel

        policy = self.models["policy"]
        model: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        return cast("PreTrainedModel", model)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a completion: those of the policy's generation configuration and the tokenizer's."""
        config = self.policy.generation_config
        named: Any = None if config is None else config.eos_token_id
        own = [] if named is None else [named] if isinstance(named, int) else list(named)
        return frozenset(int(token) for token in (*own, self.tokenizer.eos_token_id) if token is not None)
