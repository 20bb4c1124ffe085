"""Tensors as the bytes of a safetensors file, one after the other: the library's own writer wants them all in one piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from truing.train.checkpoint.files import Chunk

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types that a run's state has."""


def safetensors_chunks(table: Mapping[str, Tensor]) -> Iterator[Chunk]:
    """Yield a safetensors file piece by piece: its header, then each tensor's bytes, wide types first so that all are aligned.

    A tensor elsewhere than on the CPU is copied here when its turn comes. Raises TypeError for a type that the format lacks.
    """
    order = sorted(table, key=lambda name: (-table[name].element_size(), name))
    header: dict[str, object] = {}
    start = 0
    for name in order:
        tensor = table[name]
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name} is of type {tensor.dtype}, and a checkpoint holds {', '.join(map(str, _NAMES))}")
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        if table[name].numel():
            yield table[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def bytes_of(table: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors of a table."""
    return sum(tensor.numel() * tensor.element_size() for tensor in table.values())
