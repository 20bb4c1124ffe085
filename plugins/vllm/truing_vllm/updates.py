"""New weights, as a server is told to take them: whole from files, or an adapter alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

from truing_vllm.connection import Connection
from truing_vllm.faults import BadAnswerError, RefusedError


class Update(Protocol):
    """One version of the policy's weights."""

    @property
    def version(self) -> int:
        """The run's number for it."""

    @property
    def model(self) -> str | None:
        """What a request has to name to get these weights; None for the model itself."""

    @property
    def hint(self) -> str:
        """What to add where a server is said not to have them."""

    async def apply(self, connection: Connection, *, seconds: float) -> None:
        """Give a server these weights; each call may take so long. Raises a ServerFault, and the server samples nothing then."""


@attrs.frozen(kw_only=True)
class WholeWeights:
    """All parameters, in safetensors files below the server's folder for weights."""

    version: int
    label: str
    """What the server calls these weights in its answers."""
    files: tuple[str, ...]
    model: None = None
    hint: str = ""

    async def apply(self, connection: Connection, *, seconds: float) -> None:
        """Pause, load, drop the keys and values of the old weights, resume. What fails is not resumed."""
        await connection.post("/pause?mode=keep", {}, seconds=seconds)
        await connection.post("/init_weight_transfer_engine", {"init_info": {}}, seconds=seconds)
        # an update that was broken off is open still, and goes on; where something else is wrong, the next call says so
        with suppress(BadAnswerError):
            await connection.post("/start_weight_update", {}, seconds=seconds)
        await connection.post("/update_weights", {"update_info": {"files": list(self.files)}}, seconds=seconds)
        await connection.post("/finish_weight_update", {"weight_version": self.label}, seconds=seconds)
        await connection.post("/reset_prefix_cache?reset_running_requests=true", {}, seconds=seconds)
        await connection.post("/resume", {}, seconds=seconds)


@attrs.frozen(kw_only=True)
class AdapterWeights:
    """An adapter under a name of its own, beside those of earlier versions."""

    version: int
    model: str
    folder: Path
    older: Sequence[str]
    """Names of versions that are not to be kept."""
    hint: str = "; an adapter lies over the model that the server was started with, so start it anew where a run changed that"

    async def apply(self, connection: Connection, *, seconds: float) -> None:
        """Let go of the oldest, and load this one."""
        for name in self.older:
            with suppress(RefusedError):  # a server that was started since does not have it
                await connection.post("/v1/unload_lora_adapter", {"lora_name": name}, seconds=seconds)
        body = {"lora_name": self.model, "lora_path": str(self.folder)}
        try:
            await connection.post("/v1/load_lora_adapter", body, seconds=seconds)
        except RefusedError:  # of that name there is one
            await connection.post("/v1/unload_lora_adapter", {"lora_name": self.model}, seconds=seconds)
            await connection.post("/v1/load_lora_adapter", body, seconds=seconds)
