"""Attention over a row of prompt trees by PyTorch's flash kernels.

Prompts and branches attend to themselves (causal), and all branches of a tree to their prompt (no mask). A branch has two partial
results (o1, l1) and (o2, l2) then, l being the log-sum-exp of its scores. They merge exactly:

    l = log(e^l1 + e^l2),    o = o1 e^(l1 - l) + o2 e^(l2 - l).

The backward of a flash kernel rebuilds its probabilities as e^(score - l) and reads the output only in rowsum(grad_o * o), so each
partial call gives its exact share of the gradient when it is handed the merged o and l (Dao 2023, arXiv:2307.08691). An attention
sink is a third part, with score s and value zero.

A kernel says what its calls compute: on a CPU ranges of one tree, so that nothing is copied; on a CUDA device, where a call costs
more than copies, the whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from truing.data.row import Part, RowLayout
from truing.model import flash_cpu, flash_cuda
from truing.model.logits import wide


class Kernel(Protocol):
    """A flash kernel. A row's S positions, and the n of a part, lie in [1, heads, S, size], log-sum-exps in [1, heads, S]."""

    def supports(self, query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, window: int | None) -> bool:
        """Whether it takes these tensors of a row, all heads of which have one size."""

    def parts(self, layout: RowLayout, window: int | None) -> Iterable[Part]:
        """Return what its calls compute: own parts, which have every position once, and each other part behind its queries' own."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """Return outputs and log-sum-exps of a part."""

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of a part's queries, keys and values, from the merged outputs and log-sum-exps."""


KERNELS: tuple[Kernel, ...] = (flash_cpu, flash_cuda)


def flash_kernel(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, window: int | None = None) -> Kernel | None:
    """Return the kernel that takes these tensors, or None."""
    one_size = query.shape[-1] == key.shape[-1] == value.shape[-1]
    return next((kernel for kernel in KERNELS if one_size and kernel.supports(query, key, value, layout, window)), None)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float,
    sinks: Tensor | None,
    kernel: Kernel,
    window: int | None = None,
) -> Tensor:
    """Return outputs [1, S, heads, size] for `query` [1, heads, S, size] and `key`, `value` [1, key-value heads, S, size].

    `sinks` [heads] are scores that take part in every softmax and have no value. `window` is how many positions each sees, itself
    included; None is all.
    """
    return _apply(query, key, value, sinks, tuple(kernel.parts(layout, window)), scale, kernel)


class _TreeFlash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        parts: Sequence[Part],
        scale: float,
        kernel: Kernel,
    ) -> Tensor:
        if len(parts) == 1:
            by_head, lse = kernel.forward(query, key, value, parts[0], scale)
        else:
            heads, length, size = query.shape[1:]
            by_head = query.new_empty(1, length, heads, size).transpose(1, 2)
            lse = query.new_empty(1, length, heads, dtype=wide(query.dtype)).transpose(1, 2)
            for part in parts:
                at, of = part.queries, part.keys
                partial = kernel.forward(_at(query, at), _at(key, of), _at(value, of), part, scale)
                if not part.own:
                    partial = _merged_(_at(by_head, at), _at(lse, at), *partial)
                by_head[:, :, at], lse[:, :, at] = partial  # which copies nothing where the merged ones are views
        if sinks is not None:
            _merged_(by_head, lse, None, sinks.detach().to(lse.dtype).unsqueeze(1).expand_as(lse))
        output = by_head.transpose(1, 2)
        ctx.save_for_backward(query, key, value, sinks, output, lse)
        ctx.parts, ctx.scale, ctx.kernel = parts, scale, kernel
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, output, lse = ctx.saved_tensors
        grad, by_head = grad_outputs[0].transpose(1, 2), output.transpose(1, 2)
        if len(ctx.parts) == 1:
            grads = ctx.kernel.backward(grad, query, key, value, by_head, lse, ctx.parts[0], ctx.scale)
        else:
            grads = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
            for part in ctx.parts:
                at, of = part.queries, part.keys
                states = _at(grad, at), _at(query, at), _at(key, of), _at(value, of), _at(by_head, at), _at(lse, at)
                for total, where, share in zip(grads, (at, of, of), ctx.kernel.backward(*states, part, ctx.scale), strict=True):
                    if part.own:
                        total[:, :, where] = share
                    else:
                        total[:, :, where] += share
        grad_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            weight = (sinks.to(lse.dtype).unsqueeze(1) - lse).exp()
            grad_sinks = -(weight * (grad * by_head).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return (*grads, grad_sinks, None, None, None)


_apply: Callable[..., Tensor] = _TreeFlash.apply


def _at(tensor: Tensor, where: slice) -> Tensor:
    return tensor[:, :, where]


def _merged_(output: Tensor, lse: Tensor, other_output: Tensor | None, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Return output [..., size] and lse [...], into which another partial result has been merged; no output means zeros."""
    merged = torch.logaddexp(lse, other_lse)
    output.mul_((lse - merged).exp_().unsqueeze(-1))
    if other_output is not None:
        output.addcmul_(other_output, (other_lse - merged).exp_().unsqueeze(-1))
    return output, lse.copy_(merged)
