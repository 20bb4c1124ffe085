"""What a loss reads of a whole optimiser step: micro-batches joined, and gathered over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import attrs
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from truing.loss import POLICY_FIELDS, LossInputs

_COUNTED_BY = {
    "sequence_ids": "lengths",
    "mismatched_sequence_ids": "lengths",
    "tree_ids": "tree_ids",
    "prompt_tree_ids": "tree_ids",
}
"""Which fields hold indices, and of what: branches (as many as lengths) or trees."""


_OF_THE_RUN = ("layout", "state", "reward_weights", "max_completion_length")
"""Fields that are the same for every batch."""
_OF_A_BATCH = ("columns", "_on_host")
"""Fields that are not joined as the others are: columns by their names, and what the host knows of lengths not at all."""


def differentiable(inputs: LossInputs) -> dict[str, Tensor]:
    """Return the fields that the policy's forward gives, those that are there."""
    return {name: tensor for name in POLICY_FIELDS if (tensor := getattr(inputs, name)) is not None}


def join_inputs(parts: Sequence[LossInputs]) -> LossInputs:
    """Return one batch of all; indices of branches and trees count on from one part to the next."""
    offsets = {
        "lengths": list(accumulate((len(part.lengths) for part in parts[:-1]), initial=0)),
        "tree_ids": list(accumulate((int(part.tree_ids.max()) + 1 for part in parts[:-1]), initial=0)),
    }
    fields: dict[str, Any] = {name: getattr(parts[0], name) for name in _OF_THE_RUN}
    for name in (field.name for field in attrs.fields(LossInputs) if field.name not in (*_OF_THE_RUN, *_OF_A_BATCH)):
        shifts = offsets[_COUNTED_BY[name]] if name in _COUNTED_BY else [0] * len(parts)
        fields[name] = _join([getattr(part, name) for part in parts], shifts, parts)
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    return LossInputs(columns=columns, **fields)


def _join(column: Sequence[Tensor | None], shifts: Sequence[int], parts: Sequence[LossInputs]) -> Tensor | None:
    present = [tensor for tensor in column if tensor is not None]
    if not present:
        return None
    # margins alone may be there for some trees only, and 0 is what a tree without one has
    filled = [
        present[0].new_zeros(len(part.lengths)) if tensor is None else tensor + shift if shift else tensor
        for tensor, shift, part in zip(column, shifts, parts, strict=True)
    ]
    return torch.cat(filled)


def gather_inputs(accelerator: Accelerator, own: Sequence[LossInputs]) -> tuple[LossInputs, Mapping[str, int]]:
    """Return the inputs of all ranks as one batch on this rank's device, and where this rank's begin in each differentiable field.

    A rank may have none; all ranks must call this together.
    """
    if accelerator.num_processes == 1:
        alone = _moved(join_inputs(own), accelerator.device)
        return alone, dict.fromkeys(differentiable(alone), 0)
    by_rank = gather_object([_moved(join_inputs(own), torch.device("cpu")) if own else None])
    before = [inputs for inputs in by_rank[: accelerator.process_index] if inputs is not None]
    inputs = join_inputs([inputs for inputs in by_rank if inputs is not None])
    starts = {name: sum(len(getattr(other, name)) for other in before) for name in differentiable(inputs)}
    return _moved(inputs, accelerator.device), starts


def _moved(inputs: LossInputs, device: torch.device) -> LossInputs:
    tensors = {field.name: getattr(inputs, field.name) for field in attrs.fields(LossInputs)}
    moved: dict[str, Any] = {name: tensor.detach().to(device) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    columns = {name: column.to(device) for name, column in inputs.columns.items()}
    return attrs.evolve(inputs, columns=columns, state={}, **moved)
