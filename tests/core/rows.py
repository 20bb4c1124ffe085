"""Rows for attention: layouts, and random queries, keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.data.row import RowLayout, TreeSpan

HEADS, SIZE = 4, 8


def layout_of(trees: Sequence[tuple[int, Sequence[int]]]) -> RowLayout:
    """Return the layout of trees given by the lengths of their prompts and of their branches' inputs."""
    spans, end = [], 0
    for prompt, branches in trees:
        start, end = end, end + prompt
        ranges = []
        for length in branches:
            ranges.append((end, end + length))
            end += length
        spans.append(TreeSpan((start, start + prompt), tuple(ranges)))
    return RowLayout(tuple(spans))


def tensors(
    layout: RowLayout,
    *,
    kv_heads: int = HEADS,
    size: int = SIZE,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> list[Tensor]:
    """Return query, key and value as a model has them, positions first in memory."""
    torch.manual_seed(seed)
    shapes = [(1, sum(layout.sizes), count, size) for count in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype, device=device).transpose(1, 2).requires_grad_() for shape in shapes]


def with_gradients(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return an output, and the inputs' gradients of a sum in which each of its numbers has a weight of its own."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device).view_as(output)
    return [output, *torch.autograd.grad(output, inputs, weights.to(output.dtype))]
