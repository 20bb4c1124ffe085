"""Attention over a row of prompt trees by PyTorch's flash kernel for CPUs, in three calls a tree.

A prompt attends to itself (causal), all branches of a tree at once to their prompt (no mask), and each branch to itself (causal).
A branch has two partial results (o1, l1) and (o2, l2) then, l being the log-sum-exp of its scores. They merge exactly:

    l = log(e^l1 + e^l2),    o = o1 e^(l1 - l) + o2 e^(l2 - l).

The backward of a flash kernel rebuilds its probabilities as e^(score - l) and reads the output only in rowsum(grad_o * o), so each
partial call gives its exact share of the gradient when it is handed the merged o and l (Dao 2023, arXiv:2307.08691). An attention
sink is a third part, with score s and value zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from truing.data.layouts import RowLayout, TreeSpan

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Part = tuple[slice, slice, bool]
"""Queries, keys, and whether these are the same positions; the part is causal then."""


def flash_supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these tensors: on a CPU, with heads of one size."""
    return query.device.type == "cpu" and query.shape[-1] == key.shape[-1] == value.shape[-1]


def flash_attention(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scale: float, sinks: Tensor | None) -> Tensor:
    """Return outputs [1, S, heads, size] for `query` [1, heads, S, size] and `key`, `value` [1, key-value heads, S, size].

    `sinks` [heads] are scores that take part in every softmax and have no value.
    """
    if torch.is_autocast_enabled(query.device.type):  # what rotary embeddings return is fp32, and autocast knows no such kernel
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _apply(query, key, value, sinks, layout, scale)


class _TreeFlash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, layout: RowLayout, scale: float
    ) -> Tensor:
        heads, length, size = query.shape[1:]
        output = query.new_empty(1, length, heads, size)
        lse = query.new_empty(1, length, heads, dtype=torch.promote_types(query.dtype, torch.float32))
        by_head, lse_by_head = output.transpose(1, 2), lse.transpose(1, 2)
        for tree in layout.trees:
            for queries, keys, own in _parts(tree):
                part = _forward(query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, own, scale=scale)
                if own:
                    by_head[:, :, queries], lse_by_head[:, :, queries] = part
                else:
                    _merge_(by_head[:, :, queries], lse_by_head[:, :, queries], *part)
        if sinks is not None:
            _merge_(by_head, lse_by_head, None, sinks.detach().to(lse.dtype).view(1, heads, 1).expand_as(lse_by_head))
        ctx.save_for_backward(query, key, value, sinks, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, output, lse = ctx.saved_tensors
        grad, by_head, lse_by_head = grad_outputs[0].transpose(1, 2), output.transpose(1, 2), lse.transpose(1, 2)
        grads = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        for tree in ctx.layout.trees:
            for queries, keys, own in _parts(tree):
                parts = _backward(
                    *(grad[:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys]),
                    *(by_head[:, :, queries], lse_by_head[:, :, queries], 0.0, own),
                    scale=ctx.scale,
                )
                for total, where, part in zip(grads, (queries, keys, keys), parts, strict=True):
                    if own:
                        total[:, :, where] = part
                    else:
                        total[:, :, where] += part
        grad_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            weight = (sinks.to(lse.dtype).view(1, 1, -1) - lse).exp()
            grad_sinks = -(weight * (grad_outputs[0] * output).sum(-1)).sum((0, 1)).to(sinks.dtype)
        return (*grads, grad_sinks, None, None)


_apply: Callable[..., Tensor] = _TreeFlash.apply


def _parts(tree: TreeSpan) -> Iterator[Part]:
    """Yield the own parts of prompt and branches, which every position is in once, then that of all branches over the prompt."""
    for start, stop in (tree.prompt, *tree.branches):
        if start < stop:
            yield slice(start, stop), slice(start, stop), True
    start, stop = tree.prompt[1], tree.stop
    if start < stop:
        yield slice(start, stop), slice(*tree.prompt), False


def _merge_(output: Tensor, lse: Tensor, other_output: Tensor | None, other_lse: Tensor) -> None:
    """Merge another partial result into output [1, heads, n, size] and lse [1, heads, n], in place; no output means zeros."""
    merged = torch.logaddexp(lse, other_lse)
    output.mul_((lse - merged).exp_().unsqueeze(-1))
    if other_output is not None:
        output.addcmul_(other_output, (other_lse - merged).exp_().unsqueeze(-1))
    lse.copy_(merged)
