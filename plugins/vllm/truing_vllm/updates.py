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

    async def apply(self, connection: Connection, label: Label, *, seconds: float) -> str | None:
        """Give a server these weights, and return what the probe has to name to get them; each call may take so long.

        Raises a ServerFault, and no process counts what the server samples then.
        """

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
    """An adapter under a name of its own, beside those of earlier versions; to be probed, under the name of the try.

    Processes ask for what they want by its name, so that this one is not to be had before it is known to be right.
    """

    run: str
    version: int
    model: str
    folder: Path
    kept: Sequence[str]
    """Names of versions that are to stay."""
    hint: str = "; an adapter lies over the model that the server was started with, so start it anew where a run changed that"

    async def apply(self, connection: Connection, label: Label, *, seconds: float) -> str:
        """Let go of what is not to stay, be it of tries before, and load this one under the name of the try."""
        names = model_names(await connection.get("/v1/models", seconds=seconds))
        for name in names:
            if self.run in name and name not in self.kept:
                await self._unload(connection, name, seconds)
        if self.model in names:  # keys and values bear the name
            await connection.post("/reset_prefix_cache?reset_running_requests=true", {}, seconds=seconds)
        await self._load(connection, str(label), seconds)
        return str(label)

    async def confirm(self, connection: Connection, label: Label, *, seconds: float) -> None:
        """Load it under the name that processes ask for. Raises StaleError where the server does not have the try any more."""
        try:
            await self._unload(connection, str(label), seconds)
        except RefusedError as fault:
            raise StaleError(f"{connection} does not have {label}, which it was given: it was started again") from fault
        await self._load(connection, self.model, seconds)

    async def _load(self, connection: Connection, name: str, seconds: float) -> None:
        await connection.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(self.folder)}, seconds=seconds)

    async def _unload(self, connection: Connection, name: str, seconds: float) -> None:
        await connection.post("/v1/unload_lora_adapter", {"lora_name": name}, seconds=seconds)

    async def is_held(self, connection: Connection, *, seconds: float) -> bool:
        """Return whether it serves a model of that name."""
        return self.model in model_names(await connection.get("/v1/models", seconds=seconds))


def model_names(said: object) -> list[str]:
    """Return the names in an answer of /v1/models; none where it has another form."""
    models = said.get("data") if isinstance(said, dict) else None
    return [str(model["id"]) for model in models or () if isinstance(model, dict) and "id" in model]
