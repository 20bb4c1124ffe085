"""What a caller of the Python API hands over instead of naming it in the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows: TypeAlias = "Dataset | Sequence[Mapping[str, Any]]"
Model: TypeAlias = "PreTrainedModel | PeftModel"


@attrs.frozen(eq=False, kw_only=True)
class Given:
    """Loaded objects; what is None is loaded as the configuration says."""

    model: Model | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    dataset: Rows | None = None
    eval_dataset: Rows | None = None
