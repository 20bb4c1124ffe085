"""The reference: where a method's `reference_token_logps` come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call

from truing.data.batch import TreeBatch, collate
from truing.loss import Needs
from truing.model.loading import evaluating
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
        with evaluating(self.policy):
            logps: Tensor = self.policy(batch, Needs.MISMATCHED_LOGPS, adapter=False).logps
        return logps


class AdapterCopy:
    """The policy's model with a second, frozen adapter in the place of its own, which starts equal to that."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        adapted = ((f"model.{name}", weight) for name, weight in policy.model.named_parameters())  # not heads and critic
        self._adapter = {name: weight.detach().clone() for name, weight in adapted if weight.requires_grad}

    @property
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Those of the model that do not train, and of the second adapter."""
        frozen = ((name, weight) for name, weight in self.policy.named_parameters() if not weight.requires_grad)
        return itertools.chain(frozen, self.policy.named_buffers(), self._adapter.items())

    @torch.no_grad()
    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M]."""
        with evaluating(self.policy):
            logps: Tensor = functional_call(self.policy, self._adapter, (batch, Needs.MISMATCHED_LOGPS)).logps
        return logps


class FrozenCopy:
    """A second model: with the weights that the policy started from, or another one altogether."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.requires_grad_(False).eval()

    @property
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """All of the copy."""
        return itertools.chain(self.policy.named_parameters(), self.policy.named_buffers())

    @torch.no_grad()
    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M]; a batch that is laid out for another forward than this model's is laid out anew."""
        if batch.forward != self.policy.layout:
            batch = collate(batch.trees, self.policy.layout).to(batch.targets.device)
        logps: Tensor = self.policy(batch, Needs.MISMATCHED_LOGPS).logps
        return logps


@attrs.frozen(eq=False)
class Following:
    """A reference that moves towards the policy every so many steps (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656)."""

    reference: AdapterCopy | FrozenCopy
    sources: Mapping[str, Tensor]
    """The policy's weights that it moves towards, by name."""
    sync_steps: int
    mixup_alpha: float

    @property
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Those of the reference, as they are now."""
        return self.reference.weights

    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M]."""
        return self.reference.token_logps(batch)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights that move, by name."""
        return {name: weight.detach() for name, weight in self.reference.weights if name in self.sources}

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Set its weights to mixup_alpha policy + (1 - mixup_alpha) reference, where sync_steps divides `steps`, those done."""
        if steps % self.sync_steps == 0:
            for name, weight in self.tensors().items():
                weight.lerp_(self.sources[name].detach().to(weight.dtype), self.mixup_alpha)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights that `tensors` gave."""
        for name, weight in self.tensors().items():
            weight.copy_(tensors[name])
