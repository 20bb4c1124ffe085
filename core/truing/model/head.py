"""From hidden states to the scores of counted tokens, or to the loss itself, without the logits of all of them ever existing.

`score_tokens` gives scores that autograd follows. `fused_loss` goes further where a loss can be called for some trees at a time:
it scores them, calls the loss, and takes the gradients of hidden states and weights at once, while their logits are still there,
so that nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from truing.loss import Needs
from truing.model.logits import Head, Logits, TokenScores, wide

KEPT_BYTES = 256 * 2**20
"""On a CPU, most memory of logits that are kept for the backward; beyond it they are computed twice."""
PART_BYTES = 64 * 2**20
"""On a CPU, most memory of the logits of several trees that a loss is called for at once; more is no faster."""
KEPT_SHARE, PART_SHARE = 1 / 16, 1 / 128
"""The same elsewhere, of the device's memory."""
CHUNK = 1024
"""Tokens whose logits are computed at once."""
KEPT_CHUNK = {"cpu": 400}
"""The most of logits that are kept, by device: few enough that a tile finds room in the holes that a forward's temporaries leave in
the heap, and no fewer, for every chunk goes over the weights and their gradient again; all tokens elsewhere."""


def kept_bytes(device: torch.device) -> int:
    """Return how much memory logits may take that are kept for the backward."""
    return _bytes(device, KEPT_BYTES, KEPT_SHARE)


def tokens_kept(head: Head) -> int:
    """Return of how many tokens the logits can be kept for the backward."""
    weight = next(head.linear.parameters())
    return kept_bytes(weight.device) // (4 * weight.shape[0])


def tokens_together(head: Head) -> int:
    """Return how many tokens a loss is called for at once, where these are of several trees."""
    weight = next(head.linear.parameters())
    return _bytes(weight.device, PART_BYTES, PART_SHARE) // (4 * weight.shape[0])


def _bytes(device: torch.device, on_cpu: int, share: float) -> int:
    return int(share * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else on_cpu


def score_tokens(hidden: Tensor, targets: Tensor, head: Head, needs: Needs) -> TokenScores:
    """Return scores of `targets` [N] under the distributions that `head` makes of `hidden` [N, H].

    Logits have the type of the forward, and what is summed over them float32 (float64 for such models).
    """
    if head.is_linear:
        keep = torch.is_grad_enabled() and len(targets) <= tokens_kept(head)
        return TokenScores(*_score(hidden, head.linear.weight, head.linear.bias, targets, head, needs, keep))
    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return TokenScores.cat([_score_foreign(chunk, ids, head, needs) for chunk, ids in parts])


def score_logits(logits: Tensor, targets: Tensor, needs: Needs) -> TokenScores:
    """Return scores of `targets` [N] under `logits` [N, V]."""
    log_probs = logits.to(wide(logits.dtype)).log_softmax(-1)
    return TokenScores(
        log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        entropy=-(log_probs.exp() * log_probs).sum(-1) if Needs.ENTROPY in needs else None,
        squared_probs=(2 * log_probs).exp().sum(-1) if Needs.SQUARED_PROBS in needs else None,
    )


def _score_foreign(hidden: Tensor, targets: Tensor, head: Head, needs: Needs) -> TokenScores:
    """Score through a head that is a module of any kind; its logits are recomputed in the backward."""

    def score(chunk: Tensor) -> TokenScores:
        return score_logits(head.shaped(head.linear(chunk)), targets, needs)

    scores: TokenScores = checkpoint(score, hidden, use_reentrant=False) if torch.is_grad_enabled() else score(hidden)
    return scores


@attrs.frozen(eq=False)
class Part:
    """Some of the tokens, those of whole trees, and the loss of them as a function of their scores."""

    tokens: Tensor | slice
    """Which of the N tokens."""
    size: int
    """How many these are."""
    loss: Callable[[TokenScores], Tensor]


def fused_loss(hidden: Tensor, targets: Tensor, head: Head, needs: Needs, parts: Sequence[Part]) -> Tensor:
    """Return the sum of the parts' losses, with the gradients of `hidden` [N, H] and of the head already taken.

    Every part's loss is called once, with autograd on. Needs a linear head.
    """
    return _fuse(hidden, head.linear.weight, head.linear.bias, targets, head, needs, parts)


@attrs.frozen(eq=False)
class _Operands:
    """Hidden states, weight and bias in the type that the forward multiplies in."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def cast(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Operands:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return cls(hidden.detach().to(dtype), weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype))

    def logits(self, part: Tensor | slice, targets: Tensor, head: Head, needs: Needs, *, keep: bool) -> Logits:
        """Return the logits of some tokens, not computed yet."""
        return Logits(self.hidden[part], self.weight, self.bias, targets[part], head, needs, [] if keep else None)


class _Gradients(NamedTuple):
    """Sums of the gradients of weight and bias, None for one that does not train."""

    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, ctx: Any, logits: Logits) -> _Gradients:
        """Return zeros; `ctx` is of a function whose second and third inputs are weight and bias."""
        return cls(
            *(
                torch.zeros_like(tensor, dtype=wide(tensor.dtype)) if needed and tensor is not None else None
                for needed, tensor in zip(ctx.needs_input_grad[1:3], (logits.weight, logits.bias), strict=True)
            )
        )


def _chunks(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)] or [slice(0, 0)]


def _kept_chunks(size: int, device: str) -> list[slice]:
    """Return chunks that are about as long as one another."""
    count = max(1, math.ceil(size / KEPT_CHUNK.get(device, size or 1)))
    return _chunks(size, max(1, math.ceil(size / count)))


def _within(tokens: Tensor | slice, chunk: slice) -> Tensor | slice:
    """Return a chunk of the tokens, in the numbering that they are in."""
    return tokens[chunk] if isinstance(tokens, Tensor) else slice(tokens.start + chunk.start, tokens.start + chunk.stop)


def _cast(
    dtypes: tuple[torch.dtype, torch.dtype], hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    of_hidden, of_weight = dtypes
    columns = ((hidden, of_hidden), (weight, of_weight), (bias, of_weight))
    return tuple(None if gradient is None else gradient.to(dtype) for gradient, dtype in columns)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, needs: Needs, keep: bool
    ) -> tuple[Tensor | None, ...]:
        operands = _Operands.cast(hidden, weight, bias)
        with torch.autocast(hidden.device.type, enabled=False):
            ctx.chunks = _chunks(len(targets), CHUNK)
            ctx.logits = [operands.logits(chunk, targets, head, needs, keep=keep) for chunk in ctx.chunks]
            scores = TokenScores.cat([logits.score() for logits in ctx.logits])
        ctx.set_materialize_grads(False)
        ctx.dtypes = hidden.dtype, weight.dtype
        return scores.columns

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logps = grads[0]
        if logps is None:
            logps = torch.zeros_like(torch.cat([logits.scores.logps for logits in ctx.logits]))
        scores = TokenScores(logps, *grads[1:])
        gradients = _Gradients.of(ctx, ctx.logits[0])
        with torch.autocast(logps.device.type, enabled=False):
            rows = [logits.backward(scores[chunk], *gradients) for logits, chunk in zip(ctx.logits, ctx.chunks, strict=True)]
        return (*_cast(ctx.dtypes, torch.cat(rows), *gradients), None, None, None, None)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        needs: Needs,
        parts: Sequence[Part],
    ) -> Tensor:
        operands = _Operands.cast(hidden, weight, bias)
        grad_hidden = torch.zeros_like(hidden, dtype=wide(hidden.dtype))
        gradients = None
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in parts:
                keep = part.size <= tokens_kept(head)
                chunks = _kept_chunks(part.size, hidden.device.type) if keep else _chunks(part.size, CHUNK)
                at = [_within(part.tokens, chunk) for chunk in chunks]
                logits = [operands.logits(tokens, targets, head, needs, keep=keep) for tokens in at]
                gradients = gradients or _Gradients.of(ctx, logits[0])
                value, grads = _loss_and_gradients(part.loss, TokenScores.cat([one.score() for one in logits]))
                total = total + value
                for one, tokens, chunk in zip(logits, at, chunks, strict=True):
                    grad_hidden[tokens] = one.backward(grads[chunk], *gradients)
        ctx.save_for_backward(grad_hidden, *(gradients or (None, None)))
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # in their own memory; autograd refuses a second backward, which would scale them twice
        scaled = [None if gradient is None else gradient.mul_(grads[0]) for gradient in ctx.saved_tensors]
        return (*_cast(ctx.dtypes, *scaled), None, None, None, None)


_score: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] = _Scores.apply
_fuse: Callable[..., Tensor] = _FusedLoss.apply


def _loss_and_gradients(loss: Callable[[TokenScores], Tensor], scores: TokenScores) -> tuple[Tensor, TokenScores]:
    present = [column.requires_grad_() for column in scores.columns if column is not None]
    with torch.enable_grad():
        value = loss(scores)
    found = iter(torch.autograd.grad(value, present, allow_unused=True))
    logps, *others = (None if column is None else next(found) for column in scores.columns)
    return value.detach(), TokenScores(torch.zeros_like(scores.logps) if logps is None else logps, *others)
