"""`truing train`: one YAML file in, an aligned model out."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click
import psutil

from truing.cli.ranks import die_of_interrupts, hold_requests_to_save

POLL_SECONDS = 0.1
STEP_SECONDS = 300
"""What the step under way may take after a signal to stop, before the processes are killed."""


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[CHECKPOINT]",
    help="Continue the run in output.dir, from its newest whole checkpoint or from the one given. Write it last.",
)
@click.option("--num-processes", type=click.IntRange(min=1), default=1, show_default=True, help="Data-parallel processes to start.")
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often all processes are started again, from the newest checkpoint, when one of several is lost.",
)
@click.pass_context
def train(
    context: click.Context, config: Path, overrides: tuple[str, ...], resume: str | None, num_processes: int, max_restarts: int
) -> None:
    """Train as CONFIG says. OVERRIDES change single keys: trainer.learning_rate=1e-5 method.beta=0.2"""
    hold_requests_to_save()
    if resume and "=" in resume and not Path(resume).exists():  # `--resume key=value`: an override, not a checkpoint
        overrides, resume = (resume, *overrides), ""
    from truing.config import load_config
    from truing.errors import ConfigError
    from truing.registry import Registry

    loaded = load_config(config, overrides, registry=Registry.load())
    if resume:
        _require_checkpoint(Path(resume), loaded.output.dir)
    if max_restarts and num_processes == 1:
        raise ConfigError("--max-restarts starts the processes of --num-processes again; with one process, run again with --resume")
    if num_processes > 1:
        debug = ["--debug"] if context.find_root().params.get("debug") else []
        resuming = [] if resume is None else [f"--resume={resume}"]
        arguments = [*debug, "train", str(config), *overrides, *resuming]
        context.exit(_launch(num_processes, max_restarts, arguments, patience=int(loaded.trainer.save_timeout) + STEP_SECONDS))
    die_of_interrupts()
    from truing.train.loop import train as run
    from truing.train.quiet import quiet_terminal

    with quiet_terminal():
        run(loaded, resume=Path(resume) if resume else resume is not None)


def _require_checkpoint(path: Path, folder: Path) -> None:
    """Raise ConfigError unless there is one, or had been when this process was started first: it goes on from the newest then."""
    if (path / "manifest.json").exists():
        return
    from truing.errors import ConfigError
    from truing.train.restarts import was_restarted

    if not was_restarted():
        raise ConfigError(f"--resume: {path} is no checkpoint, which is a folder such as {folder}/checkpoints/step-00000100")


def _launch(processes: int, restarts: int, arguments: list[str], *, patience: int) -> int:
    """Run this program once per process under accelerate's launcher, and return the exit code of the first that failed.

    It runs anew, at most `restarts` times, when a process is lost. Processes have `patience` seconds to end after a signal.
    """
    import torch
    import torch.distributed.run
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not torch.cuda.is_available():
        # accelerate's own CPU mode wants MPI; its launcher for GPUs starts gloo processes just as well when told so
        os.environ["ACCELERATE_USE_CPU"] = "true"
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own; the processes say themselves what went wrong
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    launcher = launch_command_parser().parse_args(
        [
            *("--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"),
            *("--max_restarts", str(restarts)),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--module", "truing", *arguments),
        ]
    )
    launcher.shutdown_timeout, launcher.signals_to_handle = patience, "SIGHUP,SIGQUIT"  # of torch's launcher, behind accelerate's
    _handle_stops()
    _forward_requests_to_save()
    try:
        launch_command(launcher)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        killer = signal.Signals(-failure.exitcode).name
        click.secho(
            f"error: process {failure.pid} (rank {rank}) was killed by {killer}, and the others were stopped; "
            "continue with --resume",
            fg="red",
            err=True,
        )
        return 128 - int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _handle_stops() -> None:
    """Let the first SIGINT or SIGTERM stop the processes in order, and a second one at once, which torch's launcher would not."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def stop(number: int, frame: FrameType | None) -> None:
        handle(kill)
        raise SignalException(f"got signal {number}", sigval=signal.Signals(number))

    def kill(number: int, frame: FrameType | None) -> None:
        for process in _launched():
            process.kill()

    def handle(by: Callable[[int, FrameType | None], None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, by)

    handle(stop)


def _forward_requests_to_save() -> None:
    """Hand every SIGUSR1, which this launcher holds back, on to its processes, which hold it back as well until they note it."""
    threading.Thread(target=_forward, name="truing-forward", daemon=True).start()


def _forward() -> None:
    while True:
        signal.sigwait({signal.SIGUSR1})
        while not (processes := _launched()):  # not started yet, or being started again
            time.sleep(POLL_SECONDS)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGUSR1)


def _launched() -> list[psutil.Process]:
    """Return this launcher's processes: the children that have begun with what torch's agent told them."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # one that has ended meanwhile
            if "TORCHELASTIC_RUN_ID" in child.environ():
                found.append(child)
    return found
