"""PyTorch's flash kernel for CUDA devices: one call for all prompts and branches, one for all branches over their prompts.

Its variable-length form takes many segments that lie one behind the other. It reads int32 offsets and log-sum-exps [heads,
positions] in float32, by their address and without a look at strides, and knows grouped key-value heads itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truing.data.row import Part, RowLayout

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward

DTYPES = {torch.float16, torch.bfloat16}
LARGEST_HEAD = 256


def supports(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout) -> bool:
    """Whether the tensors are half precision on a CUDA device, of heads that the kernel takes, and the layout was moved there.

    That the device and the build of PyTorch have the kernel, calling it must show.
    """
    size = query.shape[-1]
    fits = query.dtype in DTYPES and query.dtype == key.dtype == value.dtype and size <= LARGEST_HEAD and size % 8 == 0
    return query.device.type == "cuda" and fits and bool(layout.joined)


def parts(layout: RowLayout) -> tuple[Part, ...]:
    """Return the parts of all trees at once."""
    return layout.joined


def forward(query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """Return outputs [1, heads, n, size] and log-sum-exps [1, heads, n]."""
    rows = (_by_position(tensor) for tensor in (query, key, value))
    output, lse, *_ = _forward(*rows, *_segments(part), 0.0, part.own, False, scale=scale)
    return _by_head(output), lse.unsqueeze(0)


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, part: Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    rows = (_by_position(tensor) for tensor in (grad, query, key, value, output))
    seed, unused = (query.new_empty(size, dtype=torch.uint64) for size in (2, 0))  # read where there is dropout
    grads = _backward(*rows, lse[0].contiguous(), *_segments(part), 0.0, part.own, seed, unused, scale=scale)
    grad_query, grad_key, grad_value = (_by_head(tensor) for tensor in grads)
    return grad_query, grad_key, grad_value


def _by_position(tensor: Tensor) -> Tensor:
    """Return [n, heads, size] from [1, heads, n, size]; no copy where a model has written it so."""
    return tensor[0].transpose(0, 1).contiguous()


def _by_head(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).unsqueeze(0)


def _segments(part: Part) -> tuple[Tensor, Tensor, int, int]:
    segments = part.segments
    assert segments is not None
    # for segments of one query each the kernel turns into another one, for decoding, which the probe's rows do not try
    return segments.query_offsets, segments.key_offsets, max(segments.most_queries, 2), segments.most_keys
