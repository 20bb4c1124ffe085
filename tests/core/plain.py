"""The plainest forward there is, to compare with: one unpadded sequence at a time, full logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.data.tree import PromptTree


def plain_logps(model: torch.nn.Module, trees: Sequence[PromptTree]) -> Tensor:
    """Log-probabilities of all counted completion tokens, in order."""
    parts = []
    for tree in trees:
        for branch in tree.branches:
            ids = torch.tensor([tree.prompt_ids + branch.token_ids])
            log_probs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            start = len(tree.prompt_ids)
            parts += [
                log_probs[start + i - 1, token]
                for i, (token, counted) in enumerate(zip(branch.token_ids, branch.loss_mask, strict=True))
                if counted
            ]
    return torch.stack(parts)


def gradients(model: torch.nn.Module, logps: Tensor) -> list[Tensor]:
    """Gradients of a sum in which every log-probability has a weight of its own."""
    weights = torch.linspace(-1, 1, len(logps), dtype=logps.dtype, device=logps.device)
    return list(torch.autograd.grad((logps * weights).sum(), [p for p in model.parameters() if p.requires_grad]))
