"""The logits of some tokens, tile by tile of the vocabulary, and the gradients that follow from those of their scores.

Log-sum-exps of tiles join to that of all. The backward is written by hand: with p = softmax(z), H the entropy and S = sum p^2, the
gradient of a token's loss with respect to its logits z is

    g_logp (onehot - p) - g_H p (log p + H) + 2 g_S p (p - S).

It needs the logits again, which are either kept or computed a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from truing.loss import Needs

TILE = {"cpu": 2048}
"""Columns of a tile by device, so that it stays in the cache; the whole vocabulary elsewhere."""


@attrs.frozen(eq=False)
class TokenScores:
    """What the policy says of N tokens: log-probabilities, and what else was asked for, [N] each."""

    logps: Tensor
    entropy: Tensor | None = None
    squared_probs: Tensor | None = None

    @property
    def columns(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All of them, those that are not there as None."""
        return self.logps, self.entropy, self.squared_probs

    def __getitem__(self, part: slice) -> TokenScores:
        logps, *others = (None if column is None else column[part] for column in self.columns)
        assert logps is not None
        return TokenScores(logps, *others)

    @classmethod
    def cat(cls, parts: list[TokenScores]) -> TokenScores:
        """Join the scores of consecutive tokens."""

        def join(column: Iterable[Tensor | None]) -> Tensor | None:
            present = [tensor for tensor in column if tensor is not None]
            return torch.cat(present) if present else None

        entropies, squares = [part.entropy for part in parts], [part.squared_probs for part in parts]
        return cls(torch.cat([part.logps for part in parts]), join(entropies), join(squares))


@attrs.frozen(eq=False)
class Head:
    """How a model makes logits of hidden states: softcap * tanh(scale * (W h + b) / softcap), the cap where there is one."""

    linear: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, causal_lm: Any) -> Head:
        """Read it off a transformers model; whether that is all the model does is for the probe to say."""
        config = causal_lm.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(causal_lm.get_output_embeddings(), float(scale), getattr(config, "final_logit_softcapping", None))

    @property
    def is_linear(self) -> bool:
        """Whether it is a plain matrix, whose backward is known; one with an adapter is not."""
        return type(self.linear) is nn.Linear

    def shaped(self, products: Tensor) -> Tensor:
        """Return the logits, given W h + b."""
        if self.scale != 1:
            products = products * self.scale
        return products if self.softcap is None else self.softcap * (products / self.softcap).tanh()


@attrs.define(eq=False)
class Logits:
    """The logits of N tokens, tile by tile: their scores first, then the gradients that follow from those of the scores.

    `hidden` [N, H] and `weight` [V, H] are in the type that the matrices are multiplied in.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    head: Head
    needs: Needs
    kept: list[Tensor] | None = None
    """The tiles, where they are kept; filled by `score`."""
    scores: TokenScores = attrs.field(init=False)
    lse: Tensor = attrs.field(init=False)

    def score(self) -> TokenScores:
        """Go through the tiles once."""
        lses, entropies, squares = [], [], []
        chosen = torch.zeros((), device=self.targets.device)
        for columns in self._tiles():
            logits = self._compute(columns)
            lses.append(logits.logsumexp(1))
            index, inside = self._locate(columns)
            chosen = chosen + logits.gather(1, index).squeeze(1) * inside
            if self.needs & (Needs.ENTROPY | Needs.SQUARED_PROBS):
                probs = (logits - lses[-1].unsqueeze(1)).exp_()
                entropies.append((probs * logits).sum(1))
                squares.append(probs.square_().sum(1))
            if self.kept is not None:
                self.kept.append(logits)
        by_tile = torch.stack(lses)
        self.lse = by_tile.logsumexp(0)
        shares = (by_tile - self.lse).exp_()
        self.scores = TokenScores(
            chosen - self.lse,
            self.lse - (shares * torch.stack(entropies)).sum(0) if Needs.ENTROPY in self.needs else None,
            (shares.square() * torch.stack(squares)).sum(0) if Needs.SQUARED_PROBS in self.needs else None,
        )
        return self.scores

    def backward(self, grads: TokenScores, grad_weight: Tensor | None, grad_bias: Tensor | None) -> Tensor:
        """Add to the gradients of weight and bias, and return that of hidden, in fp32 (float64 for such models)."""
        grad_hidden = torch.zeros_like(self.hidden, dtype=wide(self.hidden.dtype))
        for number, columns in enumerate(self._tiles()):
            logits = self._compute(columns) if not self.kept else self.kept[number]
            gradient = self._gradient(logits, columns, grads)
            if grad_bias is not None:
                grad_bias[columns] += gradient.sum(0)
            gradient = gradient.to(self.weight.dtype)
            _add_product_(grad_hidden, gradient, self.weight[columns])
            if grad_weight is not None:
                _add_product_(grad_weight[columns], gradient.T, self.hidden)
        return grad_hidden

    def _tiles(self) -> Iterator[slice]:
        size = TILE.get(self.weight.device.type, len(self.weight))
        return (slice(start, start + size) for start in range(0, len(self.weight), size))

    def _compute(self, columns: slice) -> Tensor:
        logits = nn.functional.linear(self.hidden, self.weight[columns], None if self.bias is None else self.bias[columns])
        return self.head.shaped(logits.to(wide(logits.dtype)))

    def _locate(self, columns: slice) -> tuple[Tensor, Tensor]:
        """Return where in the tile each target is, [N, 1], and whether it is there, [N]."""
        local = self.targets - columns.start
        width = min(columns.stop, len(self.weight)) - columns.start
        return local.clamp(0, width - 1).unsqueeze(1), (local >= 0) & (local < width)

    def _gradient(self, logits: Tensor, columns: slice, grads: TokenScores) -> Tensor:
        """Return the gradient with respect to W h + b of a tile, [N, width]; it may take the memory of `logits`."""
        slope = None if self.head.softcap is None else 1 - (logits / self.head.softcap).square_()
        log_probs = logits.sub_(self.lse.unsqueeze(1))
        factor = -grads.logps.unsqueeze(1)
        if grads.entropy is None and grads.squared_probs is None:
            gradient = log_probs.exp_().mul_(factor)
        else:
            probs = log_probs.exp()
            if grads.entropy is not None:
                assert self.scores.entropy is not None
                factor = factor - grads.entropy.unsqueeze(1) * (log_probs + self.scores.entropy.unsqueeze(1))
            if grads.squared_probs is not None:
                assert self.scores.squared_probs is not None
                factor = factor + 2 * grads.squared_probs.unsqueeze(1) * (probs - self.scores.squared_probs.unsqueeze(1))
            gradient = probs.mul_(factor)
        index, inside = self._locate(columns)
        gradient.scatter_add_(1, index, (grads.logps * inside).unsqueeze(1))
        if slope is not None:
            gradient *= slope
        return gradient if self.head.scale == 1 else gradient.mul_(self.head.scale)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to sum in: float32, or float64 for such models."""
    return torch.promote_types(dtype, torch.float32)
