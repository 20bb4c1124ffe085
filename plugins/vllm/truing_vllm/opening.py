"""From settings to a live backend: which servers, what token, and a server of the run's own where that is asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import attrs
import psutil
from peft import PeftModel

from truing import ConfigError, OpenContext, SetupError
from truing.threads import running_loop
from truing.train.ranks import together
from truing_vllm.address import FILE, TOKEN_VARIABLE, Address, read_entries
from truing_vllm.backend import VllmRollout
from truing_vllm.live import LiveVllm
from truing_vllm.program import Program, Running
from truing_vllm.trainer import lora_ranks, lora_room, weights_folder, why_merged

LOG = "vllm-server.log"


def open_live(settings: VllmRollout, context: OpenContext) -> LiveVllm:
    """Return the live backend, when a server is healthy. Raises SetupError, ConfigError, RolloutError."""
    merged, is_adapter = why_merged(context, settings.serve), isinstance(context.models["policy"], PeftModel)
    adapter_alone = is_adapter and merged is None
    if adapter_alone:
        _require_room(settings.serve.max_loras, context.max_staleness)
    with ExitStack() as opened:
        gone = None
        if settings.mode == "spawn":
            address, gone = _spawned(settings, context, opened, adapter_alone)
        addresses = [address] if gone else find_addresses(settings, context.run_dir)
        loop = opened.enter_context(running_loop("truing-vllm"))
        about = _about(addresses, is_adapter, merged)
        live = LiveVllm(settings, context, addresses, loop=loop, adapter_alone=adapter_alone, about=about)
        opened.callback(live.hang_up)
        if gone:
            live.end_when(gone)
        live.wait_until_there()
        live.held = opened.pop_all()
    return live


def _require_room(max_loras: int, staleness: int) -> None:
    if max_loras <= staleness:
        raise ConfigError(
            f"rollout.serve.max_loras is {max_loras}, and with rollout.max_staleness {staleness} completions of {staleness + 1} "
            f"versions of the adapter are under way at once; set it to {staleness + 1} or more, and start servers anew with it"
        )


def find_addresses(settings: VllmRollout, run_dir: Path) -> list[Address]:
    """Return the servers that the configuration names, or that were started for this run. Raises SetupError for none."""
    entries = read_entries(run_dir)
    token = settings.served.token or os.environ.get(TOKEN_VARIABLE)
    if settings.urls:
        written = {_place(entry.url): entry.token for entry in entries}
        return [Address(url=url, token=token or written.get(_place(url))) for url in settings.urls]
    if not entries:
        raise SetupError(
            f"no vLLM server is known: {run_dir / FILE} names none that runs. Start one with `truing vllm-serve CONFIG`, name "
            "yours (rollout.server: http://host:port), or let the run start its own (rollout.mode: spawn)"
        )
    return [Address(url=entry.url, token=entry.token) for entry in entries]


def _place(url: str) -> str:
    """Return an address as other spellings of it have it too."""
    return url.rstrip("/").replace("://localhost:", "://127.0.0.1:")


def _about(addresses: list[Address], is_adapter: bool, merged: str | None) -> str:
    where = ", ".join(address.url for address in addresses)
    if not is_adapter:
        return f"vLLM at {where}; every update is probed"
    if merged is None:
        return f"vLLM at {where}, which gets the adapter alone; every update is probed"
    return f"vLLM at {where}, which gets all weights with the adapter merged, because {merged}; every update is probed"


@attrs.frozen
class Spawned:
    """A server of the run's own, as any of the run's processes sees it."""

    address: Address
    pid: int
    log: Path

    def gone(self) -> str | None:
        """Return why nothing is to be expected of it; None while it is there."""
        return None if psutil.pid_exists(self.pid) else f"vllm serve, which the run started, ended; its log is {self.log}"


def _spawned(
    settings: VllmRollout, context: OpenContext, opened: ExitStack, adapter_alone: bool
) -> tuple[Address, Callable[[], str | None]]:
    """Start a server in the run's first process; return, in all of them, its address and what says that it is gone."""
    started: list[Running] = []

    def start() -> Spawned | None:
        if context.rank != 0:
            return None
        running = _start(settings, context, opened, adapter_alone)
        started.append(running)
        return Spawned(running.address, running.process.pid, running.log)

    spawned, *_ = together(start, "starting a vLLM server")
    assert spawned is not None
    return spawned.address, started[0].death if started else spawned.gone


def _start(settings: VllmRollout, context: OpenContext, opened: ExitStack, adapter_alone: bool) -> Running:
    configs = context.models["policy"].peft_config.values() if adapter_alone else ()
    ranks = [rank for config in configs for rank in lora_ranks(config)]
    program = Program(
        settings=settings.served,
        model=str(context.policy.config._name_or_path),
        weights_dir=weights_folder(settings, context.run_dir),
        lora_rank=lora_room(max(ranks)) if ranks else None,
    )
    folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="truing-vllm-"))
    running = Running.start(program, Path(folder) / "inside", context.run_dir, LOG)
    opened.callback(running.stop)
    running.wait_until_healthy(settings.serve.start_timeout)
    return running
