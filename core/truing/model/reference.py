"""The reference: where a method's `reference_token_logps` come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from truing.data.batch import TreeBatch
from truing.loss import Needs
from truing.model.policy import Policy


class Reference(Protocol):
    """Gives the reference model's log-probabilities of a batch's counted tokens."""

    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M], without gradient: those of mismatched completions come last."""


class LiveReference(Reference, Protocol):
    """A reference that is a model."""

    @property
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """What its log-probabilities depend on, by name."""


class AdapterOff:
    """The policy itself with its adapter off: no second model is loaded."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    @property
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Those that do not train, without the adapter."""
        frozen = ((name, weight) for name, weight in self.policy.named_parameters() if not weight.requires_grad)
        return itertools.chain(frozen, self.policy.named_buffers())

    @torch.no_grad()
    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M]."""
        training = self.policy.training
        self.policy.eval()  # a reference has no dropout, and a copy is in this mode too
        logps: Tensor = self.policy(batch, Needs.MISMATCHED_LOGPS, adapter=False).logps
        self.policy.train(training)
        return logps


class FrozenCopy:
    """A second model with the weights that the policy started from."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.requires_grad_(False).eval()

    @property
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """All of the copy."""
        return itertools.chain(self.policy.named_parameters(), self.policy.named_buffers())

    @torch.no_grad()
    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M]."""
        logps: Tensor = self.policy(batch, Needs.MISMATCHED_LOGPS).logps
        return logps
