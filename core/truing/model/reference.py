"""The reference: where a method's `reference_token_logps` come from."""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor, nn

from truing.data.batch import TreeBatch, collate
from truing.data.packing import pack
from truing.data.tree import Trees, in_chunks
from truing.model.policy import Policy


class Reference(Protocol):
    """Gives the reference model's log-probabilities of a batch's counted tokens."""

    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T], without gradient."""


class AdapterOff:
    """The policy itself with its adapter off: no second model is loaded."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    @torch.no_grad()
    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T]."""
        training = self.policy.training
        self.policy.eval()  # a reference has no dropout, and a copy is in this mode too
        logps: Tensor = self.policy(batch, adapter=False).tokens.logps
        self.policy.train(training)
        return logps


class FrozenCopy:
    """A second model with the weights that the policy started from."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.requires_grad_(False).eval()

    @torch.no_grad()
    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T]."""
        logps: Tensor = self.policy(batch).tokens.logps
        return logps


class Precomputed:
    """Log-probabilities taken once, before training, of every tree; the model that gave them can be let go."""

    def __init__(self, per_sample: dict[int, Tensor]) -> None:
        self.per_sample = per_sample

    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T], on the batch's device."""
        joined = torch.cat([self.per_sample[tree.sample_id] for tree in batch.trees])
        return joined.to(batch.targets.device)

    @classmethod
    def of(cls, reference: Reference, trees: Trees, policy: Policy, budget: int) -> Precomputed:
        """Take the log-probabilities of all trees with `reference`, in the policy's layout."""
        per_sample: dict[int, Tensor] = {}
        for micro_batch in itertools.chain.from_iterable(pack(some, budget, policy.layout) for some in in_chunks(trees)):
            batch = collate(micro_batch, policy.layout).to(policy.causal_lm.device)
            lengths = [sum(branch.counted for branch in tree.branches) for tree in micro_batch]
            logps = reference.token_logps(batch).cpu().split(lengths)
            per_sample.update({tree.sample_id: part for tree, part in zip(micro_batch, logps, strict=True)})
        return cls(per_sample)
