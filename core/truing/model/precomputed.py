"""The reference's log-probabilities of a whole dataset, taken once and kept in a file that later runs find again.

The file's name is a hash of all that they depend on: the reference's weights and configuration, the tokens and which of them count,
the type of the forward. `TRUING_CACHE` says where such files are, ~/.cache/truing by default; they may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from truing.data.batch import TreeBatch, collate
from truing.data.packing import pack
from truing.data.paths import cache_folder
from truing.data.tree import PromptTree, Trees, in_chunks
from truing.model.digest import digest
from truing.model.mapped import own
from truing.model.policy import Policy
from truing.model.reference import LiveReference, Reference


@attrs.frozen(eq=False)
class Precomputed:
    """Log-probabilities taken once, before training, of every tree; the model that gave them can be let go."""

    logps: Tensor
    """Of all counted completion tokens, by sample; those of its mismatched completion come last."""
    starts: Tensor
    """[samples + 1] int64, where each sample's begin."""

    def token_logps(self, batch: TreeBatch) -> Tensor:
        """Return [T + M], on the batch's device."""
        return self.of_trees(batch.trees).to(batch.targets.device, non_blocking=True)

    def of_trees(self, trees: Sequence[PromptTree]) -> Tensor:
        """Return [T + M] of these trees, on the CPU."""
        starts = self.starts
        return join_trees([self.logps[int(starts[tree.sample_id]) : int(starts[tree.sample_id + 1])] for tree in trees], trees)

    @classmethod
    def of(
        cls,
        reference: Reference,
        trees: Trees,
        policy: Policy,
        budget: int,
        *,
        accelerator: Accelerator | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> Precomputed:
        """Take the log-probabilities of all trees with `reference`, in the policy's layout; ranks share the work.

        `alive` is called now and then. Without an accelerator each rank does all of it, as it must where weights are sharded.
        """
        rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        found: dict[int, Tensor] = {}
        mine = (some[rank::ranks] for some in in_chunks(trees))
        for micro_batch in itertools.chain.from_iterable(pack(some, budget, policy.layout) for some in mine if some):
            batch = collate(micro_batch, policy.layout).to(policy.causal_lm.device)
            logps = split_by_tree(reference.token_logps(batch).cpu(), micro_batch)
            found.update({tree.sample_id: part for tree, part in zip(micro_batch, logps, strict=True)})
            alive()
        if ranks > 1:
            found = {sample: logps for part in gather_object([found]) for sample, logps in part.items()}
        parts = [found[sample] for sample in range(len(found))]
        starts = itertools.accumulate((len(part) for part in parts), initial=0)
        return cls(torch.cat(parts), torch.tensor(list(starts)))

    @classmethod
    def read(cls, path: Path, samples: int) -> Precomputed | None:
        """Return what `write` wrote for as many samples, or None where there is no such file or it is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                found = cls(own(file.get_tensor("logps")), own(file.get_tensor("starts")))
                seal = (file.metadata() or {}).get("seal")
        except (OSError, SafetensorError):
            return None
        return found if seal == found.seal() and len(found.starts) == samples + 1 else None

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.writing")
        save_file({"logps": self.logps, "starts": self.starts}, draft, metadata={"seal": self.seal()})
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)

    def seal(self) -> str:
        """Return a hash of every number."""
        return digest([("logps", self.logps), ("starts", self.starts)])


def split_by_tree(logps: Tensor, trees: Sequence[PromptTree]) -> list[Tensor]:
    """Return a batch's [T + M] log-probabilities as those of each of its trees, copies."""
    counted, mismatched = [tree.counted for tree in trees], [tree.counted_mismatched for tree in trees]
    own, other = logps.split([sum(counted), sum(mismatched)])
    return [torch.cat(pair) for pair in zip(own.split(counted), other.split(mismatched), strict=True)]


def join_trees(parts: Sequence[Tensor], trees: Sequence[PromptTree]) -> Tensor:
    """Return what `split_by_tree` split."""
    pairs = [part.split([tree.counted, tree.counted_mismatched]) for part, tree in zip(parts, trees, strict=True)]
    return torch.cat([own for own, _ in pairs] + [other for _, other in pairs])


def reference_file(reference: LiveReference, policy: Policy, trees: Trees, precision: str) -> Path:
    """Return where the log-probabilities of these trees under this reference are kept."""
    config = {key: value for key, value in policy.causal_lm.config.to_dict().items() if key not in _NOT_NUMBERS}
    parts = [
        digest(reference.weights),
        json.dumps(config, sort_keys=True, default=str),
        trees.fingerprint,
        precision,
        str(policy.own_logits),
    ]
    return cache_folder() / "references" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.safetensors"


_NOT_NUMBERS = {"_name_or_path", "transformers_version", "use_cache", "architectures", "_attn_implementation"}
"""Of a model's configuration, what changes no log-probability."""
