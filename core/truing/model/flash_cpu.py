"""PyTorch's flash kernel for CPUs: a call for every prompt, every branch, and all branches of a tree over their prompt."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from truing.data.row import Part, RowLayout

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def supports(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout) -> bool:
    """Whether the tensors are on a CPU."""
    return query.device.type == "cpu"


def parts(layout: RowLayout) -> Iterator[Part]:
    """Return the ranges of each tree."""
    return layout.parts()


def forward(query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """Return outputs [1, heads, n, size] and log-sum-exps [1, heads, n]."""
    output, lse = _forward(query, key, value, 0.0, part.own, scale=scale)
    return output, lse


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, part: Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    grad_query, grad_key, grad_value = _backward(grad, query, key, value, output, lse, 0.0, part.own, scale=scale)
    return grad_query, grad_key, grad_value
