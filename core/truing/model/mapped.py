"""Gives a model's weights memory of their own: loaded from safetensors, they are pages of the file as long as nothing writes them.

A file that is overwritten while a run reads such weights changes them, and one that is cut short kills the process.
"""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

_MAPS = Path("/proc/self/maps")
_NO_FILES = ("/dev/", "/memfd:", "/SYSV", "/anon_hugepage")
"""Memory that has a path and is no file on a disk; models that processes share are in /dev/shm."""


def detach_from_files(model: nn.Module) -> None:
    """Copy every parameter and buffer whose memory is a file's, one at a time; parameters that share memory go on sharing it."""
    mapped = _Mapped()
    copies: dict[tuple[object, ...], Tensor] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        data = tensor.data
        if type(data) is not Tensor or data.device.type != "cpu" or data not in mapped:
            continue
        place = (data.data_ptr(), data.shape, data.stride(), data.dtype)
        if place not in copies:
            copies[place] = data.clone(memory_format=torch.preserve_format)
        tensor.data = copies[place]


def own(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where its memory is a file's."""
    return tensor.clone() if tensor in _Mapped() else tensor


class _Mapped:
    """The memory of this process that is mapped from files, as it is now; all of it where the system does not say."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.is_known = _MAPS.exists()
        for line in _MAPS.read_text(errors="replace").splitlines() if self.is_known else ():
            addresses, _, _, _, inode, *path = line.split(maxsplit=5)
            if inode != "0" and path and not path[0].startswith(_NO_FILES):
                start, end = addresses.split("-")
                self.ranges.append((int(start, 16), int(end, 16)))

    def __contains__(self, tensor: Tensor) -> bool:
        if not self.is_known:
            return True
        address = tensor.data_ptr()
        at = bisect.bisect_right(self.ranges, (address, 2**64)) - 1
        return at >= 0 and tensor.numel() > 0 and self.ranges[at][0] <= address < self.ranges[at][1]
