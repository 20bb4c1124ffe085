"""Weights that are spread over ranks, each of which has a part (FSDP2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_spread(model: nn.Module) -> bool:
    """Return whether a model's weights are spread over ranks."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor without gradient, gathered where it is spread over ranks, which all of these do together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
