"""A hash of tensors, down to the last bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor

from truing.model.spread import whole


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, shapes, types and every number; a tensor that is spread over ranks is gathered for it."""
    found = xxhash.xxh3_128()
    for name, tensor in tensors:
        tensor = whole(tensor)
        name = name.removeprefix("module.")  # of a model that DistributedDataParallel wraps
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
