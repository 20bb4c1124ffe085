"""Logits of a few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from truing.model.logits import Head

FEW = 8
"""Rows of which the transposed product is the faster one on a CPU: BLAS then reads the weights once, where it would copy them."""
TILE = 512
"""Tokens of the vocabulary at a time for more rows, so that the copy stays in the cache."""


def few_logits(head: Head, hidden: Tensor) -> Tensor:
    """Return logits [R, V] for hidden states [R, H]."""
    linear = head.linear
    measured = hidden.device.type == "cpu" and hidden.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (measured and head.is_linear):
        return head.shaped(linear(hidden))
    assert isinstance(linear, nn.Linear)
    if len(hidden) <= FEW:
        products = (linear.weight @ hidden.t()).t().contiguous()
    else:
        products = torch.cat([hidden @ tile.t() for tile in linear.weight.split(TILE)], dim=-1)
    return head.shaped(products if linear.bias is None else products + linear.bias)
