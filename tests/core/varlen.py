"""The variable-length flash operators on a CPU, by their documented meaning: what stands in for a CUDA device in tests.

They are registered where PyTorch has nothing, so calls go through its own operators and their schemas. Each segment is computed as
written in a textbook. The backward is the formula over the output and log-sum-exp that it is handed, and not that of its own
forward. What a call may rely on is asserted, and what no segment covers stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CALLS: list[str] = []
"""What was called since the last `emulated`, in order."""


@contextmanager
def emulated() -> Iterator[list[str]]:
    """Give a CPU the operators; yields the list of calls."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    CALLS.clear()
    try:
        yield CALLS
    finally:
        library._destroy()


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **others: Any,
) -> tuple[Tensor, ...]:
    """Return outputs [total, heads, size] and log-sum-exps [heads, total], and three that nobody reads without dropout."""
    CALLS.append(f"forward {query.dtype}")
    assert not return_debug_mask and not any(other is not None for other in others.values())
    output = torch.full_like(query, torch.nan)
    lse = query.new_full(query.shape[1::-1], torch.nan, dtype=torch.promote_types(query.dtype, torch.float32))
    for at, of in segments(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p):
        scores = scores_of(query[at], key[of], is_causal, scale, window_size_left, window_size_right)
        lse[:, at] = scores.logsumexp(-1)
        output[at] = (scores.softmax(-1) @ heads_first(value[of], query)).transpose(0, 1).to(query.dtype)
    return output, lse, torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64), query.new_empty(0)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    CALLS.append(f"backward {query.dtype}")
    assert not any(other is not None for other in others.values())
    assert grad_out.shape == out.shape == query.shape and grad_out.dtype == out.dtype == query.dtype
    assert logsumexp.shape == query.shape[1::-1] and logsumexp.dtype == torch.promote_types(query.dtype, torch.float32)
    assert logsumexp.is_contiguous(), "the kernel reads it by its address"
    grads = tuple(torch.full_like(tensor, torch.nan) for tensor in (query, key, value))
    for at, of in segments(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p):
        q, k, v, o, grad = (heads_first(tensor, query) for tensor in (query[at], key[of], value[of], out[at], grad_out[at]))
        scores = scores_of(query[at], key[of], is_causal, scale, window_size_left, window_size_right)
        weights = (scores - logsumexp[:, at].unsqueeze(-1)).exp()
        grad_scores = weights * (grad @ v.transpose(1, 2) - (grad * o).sum(-1, keepdim=True))
        found = (grad_scores @ k * scale, grad_scores.transpose(1, 2) @ q * scale, weights.transpose(1, 2) @ grad)
        for total, where, of_heads in zip(grads, (at, of, of), found, strict=True):
            total[where] = of_heads.unflatten(0, (total.shape[1], -1)).sum(1).transpose(0, 1).to(total.dtype)
    return grads


def segments(
    query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor, max_q: int, max_k: int, dropout_p: float
) -> list[tuple[slice, slice]]:
    """Return the queries and keys of each segment, and refuse what the kernel refuses or what would make it read elsewhere."""
    assert dropout_p == 0
    assert query.dtype == key.dtype == value.dtype and key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0 and query.shape[2] == key.shape[2] <= 256 and query.shape[2] % 8 == 0
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    found = []
    for offsets, rows, most in ((cum_seq_q, query, max_q), (cum_seq_k, key, max_k)):
        assert offsets.dtype == torch.int32 and offsets.is_contiguous()
        ends = offsets.tolist()
        ranges = [slice(start, stop) for start, stop in pairwise(ends)]
        assert ends[0] == 0 and ends[-1] == len(rows) and all(0 < there.stop - there.start <= most for there in ranges)
        found.append(ranges)
    assert found[0] and max_q > 1, "with at most one query a segment, another kernel runs"
    return list(zip(*found, strict=True))


def scores_of(query: Tensor, key: Tensor, is_causal: bool, scale: float, left: int | None, right: int | None) -> Tensor:
    """Return [heads, queries, keys]; the last query is level with the last key, and a query sees so many keys to each side."""
    scores = heads_first(query, query) @ heads_first(key, query).transpose(1, 2) * scale
    seen, level = torch.ones(scores.shape[1:], dtype=torch.bool), scores.shape[2] - scores.shape[1]
    right = 0 if is_causal else right
    seen = seen if right is None else seen.tril(level + right)
    return scores.masked_fill(~(seen if left is None else seen.triu(level - left)), -torch.inf)


def heads_first(tensor: Tensor, query: Tensor) -> Tensor:
    """Return [heads, positions, size] in float32 or wider, every key-value head as often as queries read it."""
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32)).transpose(0, 1)
    return wide.repeat_interleave(query.shape[1] // tensor.shape[1], dim=0)
