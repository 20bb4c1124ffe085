"""The trainer's side of a push: the policy's weights into files, and what they say about the probe's prompt."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from truing import OpenContext, RolloutError, WeightSource
from truing_vllm.backend import VllmRollout
from truing_vllm.probe import Probe
from truing_vllm.settings import ServeSettings

WEIGHTS_FOLDER = "vllm-weights"
"""Of ours, in `output.dir` or in the user's `weights_dir`, which need not be private."""
SHARD_BYTES = 1 << 30
KEPT = 2
"""Versions whose files stay: the newest, which a server that comes back is given, and the one before."""
PROBE_TEXT = "Alignment by trial: a wheel is trued spoke by spoke, until 2 + 2 = 4 and the rim runs straight."
PROBES = 8
"""Beginnings of the text that are asked about."""
FLOAT32_TOLERANCE, OTHER_TOLERANCE = 1e-3, 0.1
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has room for; a rank between two takes the room of the larger."""


def lora_room(rank: int) -> int | None:
    """Return the least rank that vLLM has room for and that holds this one; None where there is none."""
    return next((room for room in LORA_RANKS if room >= rank), None)


def lora_ranks(config: PeftConfig) -> list[Any]:
    """Return the ranks of an adapter: that of all modules, and those of some."""
    return [getattr(config, "r", None), *(getattr(config, "rank_pattern", None) or {}).values()]


def why_merged(context: OpenContext, serve: ServeSettings) -> str | None:
    """Return why the policy's adapter is merged into all weights, rather than pushed alone; None where it is not, or none is."""
    policy = context.models["policy"]
    if not isinstance(policy, PeftModel):
        return None
    if serve.data_parallel_size > 1:
        return "a server with data_parallel_size > 1 loads adapters into one copy only"
    if len(policy.peft_config) > 1:
        return "it is more than one"
    (config,) = policy.peft_config.values()
    if getattr(config, "use_dora", False):
        return "vLLM has no DoRA"
    if getattr(config, "modules_to_save", None):
        return "modules_to_save trains whole modules beside it"
    ranks = lora_ranks(config)
    if any(not isinstance(rank, int) or lora_room(rank) is None for rank in ranks):
        return f"its rank is {', '.join(map(str, ranks))}, and vLLM takes 1 to {LORA_RANKS[-1]}"
    return None


def make_probe(context: OpenContext, source: WeightSource, serve: ServeSettings, tolerance: float | None) -> Probe:
    """Return the probe for the policy's weights as they are."""
    model = context.policy
    text = [*context.tokenizer.encode(PROBE_TEXT, add_special_tokens=False), *context.tokenizer.all_special_ids][: 4 * PROBES]
    lengths = sorted({len(text) * number // PROBES for number in range(1, PROBES + 1)} - {0})
    both_float32 = serve.dtype in ("float32", "float") and model.dtype == torch.float32
    return Probe(
        prompts=[text[:length] for length in lengths],
        next_logps=source.next_logps(text)[[length - 1 for length in lengths]].float().cpu(),
        tolerance=tolerance or (FLOAT32_TOLERANCE if both_float32 else OTHER_TOLERANCE),
    )


def weights_folder(settings: VllmRollout, run_dir: Path) -> Path:
    """Return the folder of ours that weights go through, below the user's; the same for the run and for who starts its servers.

    It does not depend on the run where `weights_dir` is set, for a server may be started with another `output.dir`.
    """
    return (settings.weights_dir or run_dir).expanduser().absolute() / WEIGHTS_FOLDER


def run_label(run_dir: Path) -> str:
    """Return what the names of a run's weights begin with: of another run another, in every start of one the same."""
    return "run" + hashlib.blake2b(str(run_dir.absolute()).encode(), digest_size=4).hexdigest()


@attrs.define(eq=False)
class WeightFiles:
    """The folder that weights go through, which is this user's alone: the newest versions of one run."""

    root: Path
    run: str
    """What names of versions begin with."""

    def write(self, label: str, weights: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
        """Write the weights of a version and return the files' names below the root. Raises RolloutError for a full disk."""
        names = []
        with self._folder(label):
            for number, shard in enumerate(_shards(weights)):
                names.append(f"{label}/weights-{number:05d}.safetensors")
                save_file(shard, str(self.root / names[-1]))
        return tuple(names)

    def copy(self, label: str, adapter: Path) -> Path:
        """Return a copy of an adapter's folder, where servers of other machines see it. Raises RolloutError for a full disk."""
        with self._folder(label) as folder:
            shutil.copytree(adapter, folder, dirs_exist_ok=True)
        return folder

    @contextmanager
    def _folder(self, label: str) -> Iterator[Path]:
        """Yield the empty folder of a version, having removed those of old ones."""
        folder = self.root / label
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            self._make_room()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            yield folder
        except (OSError, SafetensorError) as error:
            raise RolloutError(
                f"weights for the vLLM servers cannot be written to {folder}: {error}; free some space, or set rollout.weights_dir"
            ) from error

    def _versions(self) -> list[Path]:
        return sorted(self.root.glob(f"{self.run}-*"), key=lambda path: path.stat().st_mtime)

    def _make_room(self) -> None:
        for old in self._versions()[: 1 - KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def remove(self) -> None:
        """Remove all versions of the run."""
        for folder in self._versions():
            shutil.rmtree(folder, ignore_errors=True)


def _shards(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield the parameters in lots that fit into memory beside the model; copies, for safetensors takes no tied ones."""
    shard: dict[str, Tensor] = {}
    held = 0
    for name, weight in weights:
        if held and held + weight.nbytes > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = weight.detach().to("cpu", copy=True).contiguous()
        held += weight.nbytes
    yield shard
