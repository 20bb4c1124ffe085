"""Attention over a row of prompt trees: a prompt attends to itself, a branch to its own prompt and to itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from truing.data.batch import RowLayout

NAME = "truing_tree"  # transformers refuses names with "sdpa" or "flash" in them for models that lack those


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    truing_layout: RowLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention outputs [1, S, heads, size] for a row of S positions; without a layout, what SDPA returns.

    `query` is [1, heads, S, size], `key` and `value` [1, key-value heads, S, size]. One SDPA call per prompt and per branch: keys
    are gathered for a branch, nothing is padded.
    """
    if truing_layout is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    options = {"scale": kwargs.get("scaling"), "dropout_p": kwargs.get("dropout", 0.0)}
    # one split instead of many slices: the backward of a slice writes a whole row of zeros
    queries, keys, values = (iter(tensor.split(truing_layout.sizes, dim=2)) for tensor in (query, key, value))
    pieces: list[Tensor] = []
    for tree in truing_layout.trees:
        q, prompt_k, prompt_v = next(queries), next(keys), next(values)
        pieces.append(scaled_dot_product_attention(q, prompt_k, prompt_v, is_causal=True, **options))
        for _ in tree.branches:
            q, k, v = next(queries), next(keys), next(values)
            if q.shape[2] > 0:
                k, v = torch.cat((prompt_k, k), dim=2), torch.cat((prompt_v, v), dim=2)
                pieces.append(scaled_dot_product_attention(q, k, v, attn_mask=_sees(q.shape[2], k.shape[2], q.device), **options))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _sees(branch: int, keys: int, device: torch.device) -> Tensor:
    """Return [branch, keys] bool, keys being prompt and branch: the whole prompt, and the branch up to the position itself."""
    return torch.ones(branch, keys, dtype=torch.bool, device=device).tril(keys - branch)


def use_tree_attention(model: PreTrainedModel) -> None:
    """Make the model call `tree_attention`; calls without a layout (generation) keep SDPA's masks and results."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def why_not_shared_prefix(model: PreTrainedModel) -> str | None:
    """Return why this model cannot run on rows of prompt trees, or None when nothing speaks against it.

    Only what a model declares is looked at here; whether its numbers agree is for the probe to say.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not getattr(model, "_supports_sdpa", False) or not getattr(model, "_supports_attention_backend", False):
        return f"{config.model_type} models do not take an attention function from outside"
    if kinds - {"full_attention"}:
        return f"{config.model_type} has layers of type {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True) and not kinds:
        return f"{config.model_type} attends in a sliding window"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{config.model_type} caps its attention scores"
    return None
