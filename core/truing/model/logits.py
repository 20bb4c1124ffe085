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

TILE = {"cpu": 31 * 64}
"""Columns of a tile by device, so that it stays in the cache, where rows a power of two apart would be in each other's place; the
whole vocabulary elsewhere."""


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
        numbers = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
        factor, divisor, softcap = (number if isinstance(number, int | float) else None for number in numbers)
        return cls(causal_lm.get_output_embeddings(), float(factor or 1 / (divisor or 1)), softcap)

    def at(self, temperature: float) -> Head:
        """Return the head whose logits are this one's divided by a temperature."""
        if temperature == 1:
            return self
        return Head(self.linear, self.scale / temperature, None if self.softcap is None else self.softcap / temperature)

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
    kept: list[tuple[Tensor, Tensor]] | None = None
    """The tiles, where they are kept, and their maxima; filled by `score`. A `plain` tile is e^(logit - maximum)."""
    scores: TokenScores = attrs.field(init=False)
    lse: Tensor = attrs.field(init=False)

    @property
    def plain(self) -> bool:
        """Whether nothing but e^(logit - maximum) is read again, so that it can take the logits' place in memory."""
        return self.head.softcap is None and not self.needs & (Needs.ENTROPY | Needs.SQUARED_PROBS)

    def score(self) -> TokenScores:
        """Go through the tiles once."""
        lses, entropies, squares = [], [], []
        chosen = torch.zeros((), device=self.targets.device)
        for columns in self._tiles():
            logits = self._compute(columns)
            index, inside = self._locate(columns)
            chosen = chosen + torch.where(inside, logits.gather(1, index).squeeze(1), 0)
            maxima = logits.amax(1, keepdim=True)
            powers = (logits.sub_(maxima) if self.plain else logits - maxima).exp_()
            sums = powers.sum(1)
            lses.append(maxima.squeeze(1) + sums.log())
            if self.needs & (Needs.ENTROPY | Needs.SQUARED_PROBS):
                entropies.append((powers * logits).sum(1) / sums)
                squares.append(powers.square_().sum(1) / sums.square())
            if self.kept is not None:
                self.kept.append((logits, maxima))
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
        kept, self.kept = self.kept, None  # their memory is taken, and a second backward computes them again
        for number, columns in enumerate(self._tiles()):
            logits, maxima = kept[number] if kept else (self._compute(columns), None)
            gradient, factor = self._gradient(logits, maxima, grads, columns)
            if grad_bias is not None:
                grad_bias[columns] += (factor * gradient).sum(0)
            gradient = gradient.to(self.weight.dtype)
            grad_hidden.addcmul_((gradient @ self.weight[columns]).to(grad_hidden.dtype), factor)
            if grad_weight is not None:
                _add_product_(grad_weight[columns], gradient.T, (factor * self.hidden).to(gradient.dtype))
        if self.plain:
            self._add_targets(self.head.scale * grads.logps.unsqueeze(1), grad_hidden, grad_weight, grad_bias)
        return grad_hidden

    def _gradient(self, logits: Tensor, maxima: Tensor | None, grads: TokenScores, columns: slice) -> tuple[Tensor, Tensor]:
        """Return two factors of the gradient with respect to a tile's products; of `plain` ones what is at the targets lacks.

        The second, [N, 1], is a row's: it is cheaper to scale H numbers than a tile. The first may take the logits' memory.
        """
        row = -self.head.scale * grads.logps.unsqueeze(1)
        if self.plain:
            if maxima is None:  # not e^(logit - lse): near 1 half precision rounds to 1, and what pulls a likely target up would go
                maxima = logits.amax(1, keepdim=True)
                logits.sub_(maxima).exp_()
            return logits, row * (maxima - self.lse.unsqueeze(1)).exp_()
        gradient = self._smooth_part(logits, grads)
        index, inside = self._locate(columns)
        gradient.scatter_add_(1, index, (grads.logps * inside).unsqueeze(1))
        if self.head.softcap is not None:
            gradient *= 1 - (logits / self.head.softcap).square_()
        return gradient, torch.full_like(row, self.head.scale)

    def _add_targets(self, rows: Tensor, grad_hidden: Tensor, grad_weight: Tensor | None, grad_bias: Tensor | None) -> None:
        """Add what is at the targets of `plain` tiles: rows [N, 1] there, and zero elsewhere."""
        grad_hidden.addcmul_(self.weight[self.targets].to(grad_hidden.dtype), rows)
        for total, values in ((grad_weight, rows * self.hidden), (grad_bias, rows.squeeze(1))):
            if total is not None:
                total.index_put_((self.targets,), values.to(total.dtype), accumulate=True)

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

    def _smooth_part(self, logits: Tensor, grads: TokenScores) -> Tensor:
        """Return the gradient with respect to the logits of a tile that is not `plain`, but for g_logp at the targets."""
        log_probs = logits - self.lse.unsqueeze(1)
        factor = -grads.logps.unsqueeze(1)
        probs = log_probs.exp()
        if grads.entropy is not None and self.scores.entropy is not None:
            factor = factor - grads.entropy.unsqueeze(1) * (log_probs + self.scores.entropy.unsqueeze(1))
        if grads.squared_probs is not None and self.scores.squared_probs is not None:
            factor = factor + 2 * grads.squared_probs.unsqueeze(1) * (probs - self.scores.squared_probs.unsqueeze(1))
        return probs.mul_(factor)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to sum in: float32, or float64 for such models."""
    return torch.promote_types(dtype, torch.float32)
