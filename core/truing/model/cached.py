"""Prompt trees in two passes over a key-value cache: prompts first, then every branch as a row over its prompt's keys and values.

The way of models that take no attention function from outside (ALiBi): a prompt is computed once, but rows are padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from truing.errors import ModelError


def cached_hidden(decoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return hidden states [slots, H] of all prompt rows, then of all branch rows; gradients flow through the cache.

    `inputs` are those of the `cached` layout. Raises ModelError where the model puts nothing into the cache.
    """
    mask, tree_of = inputs["prompt_mask"], inputs["tree_of"]
    # made without the model's config: every layer keeps all keys, windows or not, and the model's mask does the rest
    cache = DynamicCache()
    hidden = _call(decoder, inputs["prompt_ids"], mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    if not len(cache):
        raise ModelError("the model keeps no keys and values of a prompt; gradient checkpointing takes them away from it")
    rows = hidden.flatten(0, 1)
    if inputs["branch_ids"].shape[1] == 0:
        return rows
    both = torch.cat((mask[tree_of], inputs["branch_mask"]), dim=1)
    positions = (both.cumsum(-1) - 1)[:, mask.shape[1] :]
    later = _call(decoder, inputs["branch_ids"], both, positions, _of_rows(cache, tree_of))
    return torch.cat((rows, later.flatten(0, 1)))


def _call(decoder: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    output: Any = decoder(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _of_rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Return a cache of its own for each of `rows`."""
    copy = DynamicCache()
    layers: Sequence[Any] = cache.layers
    for index, layer in enumerate(layers):
        copy.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), index)
    return copy
