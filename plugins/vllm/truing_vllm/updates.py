"""New weights, as a server is told to take them: whole from files, or an adapter alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

from truing_vllm.connection import Connection
from truing_vllm.faults import BadAnswerError, RefusedError, StaleError
from truing_vllm.labels import Label


class Update(Protocol):
    """One version of the policy's weights."""

    @property
    def run(self) -> str:
        """Which start of which run has them; it is in every name that a server learns."""

    @property
    def version(self) -> int:
        """The run's number for it."""

    @property
    def model(self) -> str | None:
        """What a request has to name to get these weights; None for the model itself."""

    @property
    def hint(self) -> str:
        """What to add where a server is said not to have them."""

    async def apply(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Give a server these weights; each call may take so long. Raises a ServerFault, and the server samples nothing then."""

    async def confirm(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Tell a server that these weights were shown to be right, so that every process learns it there."""

    async def is_held(self, connection: Connection, *, seconds: float) -> bool:
        """Return whether a server has these weights, or newer ones, as it says itself."""


async def label_text(connection: Connection, *, seconds: float) -> str:
    """Return what a server calls its weights now. Raises a ServerFault."""
    said = await connection.get("/weight_info", seconds=seconds)
    try:
        return str(said["weight_version"])
    except (KeyError, TypeError) as error:
        raise BadAnswerError(f"{connection} does not say which weights it has: {said!r}") from error


@attrs.frozen(kw_only=True)
class WholeWeights:
    """All parameters, in safetensors files below the server's folder for weights."""

    run: str
    version: int
    files: tuple[str, ...]
    model: None = None
    hint: str = ""

    async def apply(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Pause, load, drop the keys and values of the old weights, resume. What fails is not resumed."""
        await connection.post("/pause?mode=keep", {}, seconds=seconds)
        await connection.post("/init_weight_transfer_engine", {"init_info": {}}, seconds=seconds)
        # an update that was broken off is open still, and goes on; where something else is wrong, the next call says so
        with suppress(BadAnswerError):
            await connection.post("/start_weight_update", {}, seconds=seconds)
        await connection.post("/update_weights", {"update_info": {"files": list(self.files)}}, seconds=seconds)
        await connection.post("/finish_weight_update", {"weight_version": str(label)}, seconds=seconds)
        await connection.post("/reset_prefix_cache?reset_running_requests=true", {}, seconds=seconds)
        await connection.post("/resume", {}, seconds=seconds)

    async def confirm(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Name the weights anew, as proven. Raises StaleError where the server has others since."""
        said = await label_text(connection, seconds=seconds)
        if said != str(label):
            raise StaleError(
                f"{connection} has weights {said!r} after it was given {label}: it was started again, or has two users"
            )
        proven = attrs.evolve(label, proven=True)
        await connection.post("/update_weight_version", {"new_version": str(proven)}, seconds=seconds)

    async def is_held(self, connection: Connection, *, seconds: float) -> bool:
        """Return whether its label is proven, and of this version or a newer one."""
        label = Label.read(await label_text(connection, seconds=seconds), self.run)
        return label is not None and label.proven and label.version >= self.version


@attrs.frozen(kw_only=True)
class AdapterWeights:
    """An adapter under a name of its own, beside those of earlier versions."""

    run: str
    version: int
    model: str
    folder: Path
    older: Sequence[str]
    """Names of versions that are not to be kept."""
    hint: str = "; an adapter lies over the model that the server was started with, so start it anew where a run changed that"

    async def apply(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Let go of the oldest, and load this one."""
        for name in self.older:
            with suppress(RefusedError):  # a server that was started since does not have it
                await connection.post("/v1/unload_lora_adapter", {"lora_name": name}, seconds=seconds)
        body = {"lora_name": self.model, "lora_path": str(self.folder)}
        try:
            await connection.post("/v1/load_lora_adapter", body, seconds=seconds)
        except RefusedError:  # of a try before there may be one of that name, and keys and values that bear it
            with suppress(RefusedError):
                await connection.post("/v1/unload_lora_adapter", {"lora_name": self.model}, seconds=seconds)
                await connection.post("/reset_prefix_cache?reset_running_requests=true", {}, seconds=seconds)
            await connection.post("/v1/load_lora_adapter", body, seconds=seconds)

    async def confirm(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Nothing is to be told: no process asks for an adapter before the first one names it."""

    async def is_held(self, connection: Connection, *, seconds: float) -> bool:
        """Return whether it serves a model of that name."""
        return self.model in model_names(await connection.get("/v1/models", seconds=seconds))


def model_names(said: object) -> list[str]:
    """Return the names in an answer of /v1/models; none where it has another form."""
    models = said.get("data") if isinstance(said, dict) else None
    return [str(model["id"]) for model in models or () if isinstance(model, dict) and "id" in model]
