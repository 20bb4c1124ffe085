"""PyTorch's flash kernel for CUDA devices: one call for a whole row.

Its variable-length form takes many sequences that lie one behind the other, and in each of them the last query sees the last key. A
branch's keys are its prompt's and its own, so that these are gathered, and the gradients of a prompt's keys summed over its
branches in float32. It reads int32 offsets and log-sum-exps [heads, positions] in float32, by their address and without a look at
strides, and knows grouped key-value heads and windows itself.

`torch.compile` would write all that it can read of a row into a program for that row alone. `traced` shows it tensors, and
operators whose gradients it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from truing.data.row import Part, RowLayout, Segments
from truing.model.logits import wide

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward

DTYPES = {torch.float16, torch.bfloat16}
LARGEST_HEAD = 256


def supports(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, window: int | None) -> bool:
    """Whether the tensors are half precision on a CUDA device, of heads that the kernel takes, and the layout was moved there.

    That the device and the build of PyTorch have the kernel, calling it must show.
    """
    size = query.shape[-1]
    fits = query.dtype in DTYPES and query.dtype == key.dtype == value.dtype and size <= LARGEST_HEAD and size % 8 == 0
    return query.device.type == "cuda" and fits and layout.segments is not None


def parts(layout: RowLayout, window: int | None) -> tuple[Part, ...]:
    """Return the whole row."""
    return (Part(slice(None), slice(None), own=True, segments=layout.segments, window=window),)


def forward(query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """Return outputs [1, heads, n, size] and log-sum-exps [1, heads, n]."""
    segments = _segments(part)
    rows = (_by_position(query), *(_gathered(tensor, segments) for tensor in (key, value)))
    output, lse, *_ = _forward(*rows, *_ranges(segments), 0.0, True, False, scale=scale, **_window(part.window))
    return _by_head(output), lse.unsqueeze(0)


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, part: Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    segments = _segments(part)
    keys_and_values = (_gathered(tensor, segments) for tensor in (key, value))
    rows = (_by_position(grad), _by_position(query), *keys_and_values, _by_position(output))
    seed, unused = (query.new_empty(size, dtype=torch.uint64) for size in (2, 0))  # read where there is dropout
    ranges = _ranges(segments)
    grads = _backward(*rows, lse[0].contiguous(), *ranges, 0.0, True, seed, unused, scale=scale, **_window(part.window))
    grad_query, *others = grads
    if segments.keys is not None:
        others = [_summed(gradient, segments.keys, key.shape[2]) for gradient in others]
    return _by_head(grad_query), _by_head(others[0]), _by_head(others[1])


def traced(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """Return outputs [1, n, heads, size] for a program that is being compiled; autograd follows."""
    rows = [_by_position(tensor) for tensor in (query, key, value)]
    if segments.keys is not None:
        rows[1:] = [_differentiably_gathered(row, segments.keys) for row in rows[1:]]
    output: Tensor = _forward(*rows, *_ranges(segments), 0.0, True, False, scale=scale, **_window(window))[0]
    return output.unsqueeze(0)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.count = len(row)
        return row[keys]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keys,) = ctx.saved_tensors
        return _summed(grads[0], keys, ctx.count), None


_differentiably_gathered: Callable[[Tensor, Tensor], Tensor] = _Gather.apply


def _by_position(tensor: Tensor) -> Tensor:
    """Return [n, heads, size] from [1, heads, n, size]; no copy where a model has written it so."""
    return tensor[0].transpose(0, 1).contiguous()


def _by_head(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).unsqueeze(0)


def _gathered(tensor: Tensor, segments: Segments) -> Tensor:
    """Return [K, heads, size], what every key of every sequence is, from [1, heads, n, size]."""
    return _by_position(tensor) if segments.keys is None else tensor[0].transpose(0, 1)[segments.keys]


def _summed(gathered: Tensor, keys: Tensor, count: int) -> Tensor:
    """Return [count, ...], for each position the sum over the keys that it is, from [K, ...]."""
    total = gathered.new_zeros((count, *gathered.shape[1:]), dtype=wide(gathered.dtype))
    return total.index_add_(0, keys, gathered.to(total.dtype)).to(gathered.dtype)


def _segments(part: Part) -> Segments:
    assert part.segments is not None
    return part.segments


def _ranges(segments: Segments) -> tuple[Tensor, Tensor, int, int]:
    # for sequences of one query each the kernel turns into another one, for decoding, which the probe's rows do not try
    return segments.query_offsets, segments.key_offsets, max(segments.most_queries, 2), segments.most_keys


def _window(window: int | None) -> dict[str, int]:
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
