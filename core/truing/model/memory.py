"""How many tokens a forward may have: what the loaded model keeps for a token is measured, not guessed from its size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from truing.data.batch import TreeBatch, collate
from truing.data.tree import PromptTree
from truing.loss import Needs
from truing.model.head import kept_bytes
from truing.model.loading import evaluating, is_checkpointing
from truing.model.policy import Policy
from truing.model.probe import Autocast

MOST_TOKENS = {"cpu": 4096}
"""By device, beyond what a larger forward gains nothing from, unless the loss sees whole steps: cut, they are computed twice."""
MOST_TOKENS_ELSEWHERE = 65_536
LEAST_TOKENS = 512
SHARE = 0.7
"""Of the memory that is free; the rest is for what cannot be foreseen, such as fragmentation and other processes."""
_CGROUP = Path("/sys/fs/cgroup")


def token_budget(
    policy: Policy,
    trees: Sequence[PromptTree],
    needs: Needs = Needs.NOTHING,
    *,
    whole_steps: bool = False,
    autocast: Autocast = nullcontext,
) -> int:
    """Return the tokens of a forward whose activations fit beside gradients and Adam's moments: 2^n, or half as many again.

    `trees` are some that the policy can run, the shortest first, and `needs` what is asked of it, under `autocast`; `whole_steps`
    says that the loss sees them. Measured before gradients and moments exist.
    """
    device = policy.causal_lm.device
    trained = sum(weight.numel() * weight.element_size() for weight in policy.parameters() if weight.requires_grad)
    logits = 0 if Needs.NO_LOGPS in needs else kept_bytes(device)
    per_token, fixed = activation_bytes(policy, trees, needs, autocast)
    room = SHARE * free_bytes(device) - 3 * trained - logits - fixed
    most = MOST_TOKENS_ELSEWHERE if whole_steps else MOST_TOKENS.get(device.type, MOST_TOKENS_ELSEWHERE)
    fitting = max(LEAST_TOKENS, min(most, int(room / per_token)))
    power = 1 << (fitting.bit_length() - 1)
    return power + power // 2 if fitting >= power + power // 2 else power


def activation_bytes(
    policy: Policy, trees: Sequence[PromptTree], needs: Needs = Needs.NOTHING, autocast: Autocast = nullcontext
) -> tuple[float, float]:
    """Return the bytes that autograd keeps for a position, and those that are the same for any batch: weights that it has cast.

    These are told apart by the first tree, which is the shortest: two of the longest may not fit. Attention that is written out
    keeps more for a position the longer its row is, so that of all trees the most for a position counts. A model's own weights are
    left out. A later row, of mismatched branches, has no gradient and is not measured.
    """
    device, with_ends = policy.causal_lm.device, Needs.SCORES in needs
    lots = [[trees[0]], [trees[0]] * 2, *([tree] for tree in trees[1:])]
    batches = [collate(lot, policy.layout, with_ends=with_ends).to(device) for lot in lots]
    kept, positions = [_kept_bytes(policy, batch, needs, autocast) for batch in batches], list(map(_positions, batches))
    measured = (kept[1] - kept[0]) / (positions[1] - positions[0])
    fixed = max(0.0, kept[0] - measured * positions[0])
    measured = max(measured, *((bytes_ - fixed) / count for bytes_, count in zip(kept[2:], positions[2:], strict=True)), 0.0)
    if not is_checkpointing(policy.causal_lm):
        return measured, fixed
    config: Any = policy.causal_lm.config.get_text_config()
    layers = int(config.num_hidden_layers)
    # each layer keeps its input, and one at a time is computed again
    return measured / layers + layers * int(config.hidden_size) * policy.causal_lm.dtype.itemsize, fixed


def _kept_bytes(policy: Policy, batch: TreeBatch, needs: Needs, autocast: Autocast) -> int:
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with evaluating(policy), autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = policy(batch, needs & ~Needs.MISMATCHED_LOGPS)  # held, so that no storage is freed and its address used again
    del output
    return sum(kept.values())


def _positions(batch: TreeBatch) -> int:
    return batch.slots if batch.later_inputs is None else int(batch.model_inputs["input_ids"].numel())


def free_bytes(device: torch.device) -> int:
    """Return the memory that this process can still get; of the machine's, its share where a launcher has started several."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    room = min(int(psutil.virtual_memory().available), _cgroup_room())
    return room // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cgroup_room() -> int:
    """Return what a container's limit leaves, for a container sees the whole machine's memory as available."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        files = next(line for line in (_CGROUP / "memory.stat").read_text().splitlines() if line.startswith("inactive_file "))
        return int(limit) - int(used) + int(files.split()[1])  # the cache of files gives way
    except (OSError, ValueError, StopIteration):  # no such file, or "max"
        return 2**63 - 1
