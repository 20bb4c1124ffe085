"""What `truing vllm-serve` does: start, wait until healthy, write down where and with which token, stay, end."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import attrs
import click

from truing import ConfigError, SetupError, TrainConfig, TruingError
from truing.config import load_config
from truing.data.paths import local_path
from truing.registry import Registry
from truing_vllm.address import Entry, require_free, written_down
from truing_vllm.backend import VllmRollout
from truing_vllm.program import Program, Running
from truing_vllm.settings import ServeSettings
from truing_vllm.trainer import LORA_RANKS, lora_room, weights_folder

_POLL_SECONDS = 0.5


class Stopped(TruingError):
    """A signal came before the server was healthy. Exits with 128 + the signal's number: 130 or 143."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} before the server was healthy")
        self.exit_code = 128 + number


@attrs.define(eq=False)
class Signals:
    """SIGINT and SIGTERM, which in its block are noted instead of ending the program."""

    number: int = 0
    """The last that came."""
    _raises: bool = False

    @contextmanager
    def noted(self) -> Iterator[Signals]:
        """Handle the signals until the block ends."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise Stopped for a signal, wherever the block is, so that nothing is waited for."""
        self._raises = True
        try:
            if self.number:
                raise Stopped(self.number)
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        if self._raises:
            raise Stopped(number)


def program_of(config: TrainConfig) -> Program:
    """Return the server that a configuration asks for. Raises ConfigError where its rollout is not vllm."""
    backend = None if config.rollout is None else config.rollout.backend
    if not isinstance(backend, VllmRollout):
        named = "nothing" if backend is None else f"{backend.name!r}"
        raise ConfigError(f"rollout is {named}; `truing vllm-serve` serves a run whose rollout is vllm: set rollout.name: vllm")
    adapter, model = config.model.adapter, config.model
    room = None
    if adapter is not None and backend.serve.data_parallel_size == 1 and not adapter.modules_to_save:
        room = lora_room(adapter.r)
    return Program(
        settings=backend.served,
        model=str(local_path(model.name, config.base_dir) or model.name),
        revision=model.revision,
        tokenizer=None if model.tokenizer is None else str(local_path(model.tokenizer, config.base_dir) or model.tokenizer),
        trust_remote_code=model.trust_remote_code,
        weights_dir=weights_folder(backend, config.output.dir),
        lora_rank=room,
    )


def serve(path: Path, overrides: Sequence[str]) -> None:
    """Serve a configuration's run until SIGINT or SIGTERM.

    Raises ConfigError, SetupError where the server dies, and Stopped for a signal before it serves.
    """
    config = load_config(path, overrides, registry=Registry.load())
    program, run_dir = program_of(config), config.output.dir
    if config.model.adapter is not None and program.lora_rank is None:
        click.echo(
            f"the adapter will be merged: vLLM takes ranks up to {LORA_RANKS[-1]}, no modules_to_save, and one copy of the model"
        )
    require_free(run_dir, program.settings.url)
    run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="truing-vllm-") as folder, Signals().noted() as signals:
        running = Running.start(program, Path(folder) / "inside", run_dir, f"vllm-server-{_short(program.settings)}.log")
        try:
            click.echo(f"starting vllm serve {program.model}; its log is {running.log}")
            with signals.raised():
                running.wait_until_healthy(program.settings.start_timeout)
            entry = Entry(url=running.address.url, token=str(running.address.token), pid=os.getpid())
            with written_down(run_dir, entry) as file:
                click.echo(f"serving at {entry.url}; {file} has the token. Ctrl-C ends it")
                _stay(running, signals)
        finally:
            running.stop()


def _short(settings: ServeSettings) -> str:
    """Return what tells a server's log from those of others of the run."""
    return str(settings.port) if settings.uds is None else settings.uds.stem


def _stay(running: Running, signals: Signals) -> None:
    while not signals.number:
        time.sleep(_POLL_SECONDS)
        if (death := running.death()) is not None:
            raise SetupError(death)
