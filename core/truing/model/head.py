"""Log-probabilities from hidden states, in chunks of tokens, so that logits of all positions never exist at once."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from truing.loss import Needs

CHUNK_BYTES = 64 * 2**20
"""Most memory that one chunk's logits take, in fp32."""


@attrs.frozen(eq=False)
class TokenScores:
    """What the policy says of N tokens: log-probabilities, and what else was asked for, [N] each."""

    logps: Tensor
    entropy: Tensor | None = None
    squared_probs: Tensor | None = None

    @classmethod
    def cat(cls, parts: list[TokenScores]) -> TokenScores:
        """Join chunks."""

        def join(column: list[Tensor | None]) -> Tensor | None:
            present = [chunk for chunk in column if chunk is not None]
            return torch.cat(present) if present else None

        return cls(
            torch.cat([part.logps for part in parts]),
            entropy=join([part.entropy for part in parts]),
            squared_probs=join([part.squared_probs for part in parts]),
        )


def score_tokens(hidden: Tensor, targets: Tensor, head: nn.Linear, needs: Needs) -> TokenScores:
    """Return scores of `targets` [N] under the distributions that `head` makes of `hidden` [N, H].

    Log-probabilities are computed in fp32 (float64 for such models). With a gradient, each chunk's logits are recomputed in the
    backward.
    """
    rows = max(1, CHUNK_BYTES // (4 * head.out_features))
    parts = []
    for chunk, ids in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_score_chunk, chunk, ids, head, needs, use_reentrant=False))
        else:
            parts.append(_score_chunk(chunk, ids, head, needs))
    return TokenScores.cat(parts)


def score_logits(logits: Tensor, targets: Tensor, needs: Needs) -> TokenScores:
    """Return scores of `targets` [N] under `logits` [N, V]."""
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return TokenScores(
        log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        entropy=-(log_probs.exp() * log_probs).sum(-1) if Needs.ENTROPY in needs else None,
        squared_probs=(2 * log_probs).exp().sum(-1) if Needs.SQUARED_PROBS in needs else None,
    )


def _score_chunk(hidden: Tensor, targets: Tensor, head: nn.Linear, needs: Needs) -> TokenScores:
    return score_logits(head(hidden), targets, needs)
