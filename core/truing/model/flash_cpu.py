"""PyTorch's flash kernel for CPUs: a call for every short sequence, and for all that attends to all of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from truing.data.row import Part, RowLayout

CAUSAL = 192
"""Positions up to which a sequence is one call: half the work is not worth another there."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def supports(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, window: int | None) -> bool:
    """Whether the tensors are on a CPU, and every position sees all before it."""
    return query.device.type == "cpu" and window is None


def parts(layout: RowLayout, window: int | None) -> Iterator[Part]:
    """Return the ranges of each tree, long sequences cut: with a causal mask the kernel computes most of what it then masks."""
    for part in layout.parts():
        if part.own:
            yield from _halved(part.queries.start, part.queries.stop)
        else:
            yield part


def _halved(start: int, stop: int) -> Iterator[Part]:
    """Yield a causal sequence as its two halves, and the second over the first."""
    if stop - start <= CAUSAL:
        yield Part(slice(start, stop), slice(start, stop), own=True)
        return
    middle = (start + stop + 1) // 2
    yield from _halved(start, middle)
    yield from _halved(middle, stop)
    yield Part(slice(middle, stop), slice(start, middle), own=False)


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
