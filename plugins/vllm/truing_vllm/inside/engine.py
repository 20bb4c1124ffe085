"""A weight-transfer engine for vLLM that loads safetensors files below one folder: for CPUs and shared file systems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

NAME = "safetensors"


def register() -> None:
    """Make the engine known to vLLM, which calls this in each of its processes."""
    with suppress(ValueError):  # it is known: vLLM may call this more than once
        WeightTransferEngineFactory.register_engine(NAME, SafetensorsEngine)


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing is to be agreed on."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """The files of one version, relative to the folder for weights."""

    files: list[str] = field(default_factory=list)


class SafetensorsEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Reads files below the folder that TRUING_WEIGHTS_DIR names, and no others."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # before the first update, for that unties a head from the embeddings
        self.names = {_plain(name) for name, _ in self.model.named_parameters()}

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing is set up."""

    def start_weight_update(self) -> None:
        """Make every layer ready to be loaded anew."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load files; the base class waits for an accelerator afterwards, which a CPU is not."""
        if self.device.type == "cpu":
            self.receive_weights(self.parse_update_info(update_info))
        else:
            super().update_weights(update_info)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load files into the model.

        Raises ValueError for none, for one that is not below the folder, and where a weight of the model is in none of them.
        """
        if not update_info.files:
            raise ValueError("an update needs files")
        paths = [_checked(name) for name in update_info.files]
        loaded = self.model.load_weights(_weights(paths, self.device))
        if loaded is not None and self.model_config.quantization is None:  # as vLLM asks of what it loads at its start
            missing = sorted(self.names - {_plain(name) for name in loaded})
            if missing:
                raise ValueError(f"{len(missing)} of {len(self.names)} weights are in none of the files: {', '.join(missing[:5])}")

    def finish_weight_update(self) -> None:
        """Put every layer into the form that it computes in."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        """Pack the head anew where it is the embeddings: on a CPU it computes with a copy that the reload leaves as it was."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        head = getattr(self.model, "lm_head", None)
        if isinstance(head, torch.nn.Module) and getattr(self.model.config, "tie_word_embeddings", False):
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def shutdown(self) -> None:
        """Nothing is held."""


def _plain(name: str) -> str:
    """Return a weight's name without what room for adapters adds to it."""
    return name.replace(".base_layer.", ".")


def _checked(name: str) -> Path:
    root = Path(os.environ["TRUING_WEIGHTS_DIR"]).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise ValueError(f"{name!r} is no file below {root}")
    return path


def _weights(paths: list[Path], device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.offset_keys():  # as they lie in the file
                yield name, file.get_tensor(name)
