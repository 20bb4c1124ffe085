"""What a caller of the Python API hands over instead of naming it in the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows: TypeAlias = "Dataset | Sequence[Mapping[str, Any]]"
Model: TypeAlias = "PreTrainedModel | PeftModel"


def _lasting(rows: Any) -> Any:
    """Return rows that can be gone through more than once: the first one is looked at before all are read."""
    return list(rows) if isinstance(rows, Iterator) else rows


@attrs.frozen(eq=False, kw_only=True)
class Given:
    """Loaded objects; what is None is loaded as the configuration says."""

    model: Model | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    dataset: Rows | None = attrs.field(default=None, converter=_lasting)
    eval_dataset: Rows | None = attrs.field(default=None, converter=_lasting)
