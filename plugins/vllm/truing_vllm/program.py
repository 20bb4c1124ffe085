"""`vllm serve` as a child process: its command line, its environment, the part of ours that runs in it, its health and its end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import attrs
import httpx2 as httpx

import truing
from truing import ConfigError, SetupError
from truing_vllm import inside
from truing_vllm.address import TOKEN_VARIABLE, Address
from truing_vllm.connection import CONNECT_SECONDS
from truing_vllm.settings import ServeSettings

PACKAGE = "truing_inside_vllm"
"""What our part is called in the server's environment, where truing need not be installed."""
BACKEND = "safetensors"
TOKEN_FILE = ".vllm-token"
"""In the run directory: servers of a run have one token, which a server that is started again has again."""
STOP_SECONDS = 20.0
LOG_LINES = 25
_LOG_BYTES = 1 << 16
_POLL_SECONDS = 0.25


@attrs.frozen(kw_only=True)
class Program:
    """What to start."""

    settings: ServeSettings
    model: str
    weights_dir: Path
    lora_rank: int | None = None
    """Room for adapters of this rank; None for none."""
    revision: str | None = None
    tokenizer: str | None = None
    trust_remote_code: bool = False

    def token(self, kept: Path) -> str:
        """Return what clients must send: what somebody chose, or random text that a file keeps for the next start.

        Raises ConfigError where an address that others reach has none that somebody chose.
        """
        chosen = self.settings.token or os.environ.get(TOKEN_VARIABLE)
        self.settings.require_safe(chosen)
        return chosen or _kept_token(kept)

    def command(self) -> list[str]:
        """Return the command line; no secret is on it. Raises SetupError where the program is not there."""
        serve = self.settings
        found = shutil.which(str(Path(serve.executable).expanduser()))
        if found is None:
            raise SetupError(
                f"rollout.serve.executable: no program {serve.executable!r}; install vLLM in an environment of its own "
                "(pip install vllm==0.33.0 there) and give the path of its bin/vllm"
            )
        where = (
            ["--uds", str(serve.uds.expanduser().absolute())] if serve.uds else ["--host", serve.host, "--port", str(serve.port)]
        )
        optional: Mapping[str, object] = {
            "--gpu-memory-utilization": serve.gpu_memory_utilization,
            "--kv-cache-memory-bytes": serve.kv_cache_memory_bytes,
            "--max-model-len": serve.max_model_len,
            "--revision": self.revision,
            "--tokenizer": self.tokenizer,
            "--max-lora-rank": self.lora_rank,
            "--max-loras": serve.max_loras if self.lora_rank else None,
        }
        flags = {
            "--enable-lora": self.lora_rank is not None,
            "--enforce-eager": serve.enforce_eager,
            "--trust-remote-code": self.trust_remote_code,
            "--no-enable-prefix-caching": not serve.enable_prefix_caching,
        }
        return [
            *(found, "serve", self.model, *where),
            *("--dtype", serve.dtype),
            *("--tensor-parallel-size", str(serve.tensor_parallel_size), "--data-parallel-size", str(serve.data_parallel_size)),
            *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enable-scale-out"),
            *("--weight-transfer-config", f'{{"backend":"{BACKEND}"}}'),
            *("--middleware", f"{PACKAGE}.guard.Guard", "--disable-uvicorn-access-log"),
            *(word for flag, value in optional.items() if value is not None for word in (flag, str(value))),
            *(flag for flag, wanted in flags.items() if wanted),
            *serve.args,
        ]

    def environment(self, folder: Path, token: str) -> dict[str, str]:
        """Return the environment variables: ours, with `folder` where our part lies, over those of this process."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        return {
            **inherited,
            "PYTHONPATH": str(folder),
            "TRUING_GUARD_TOKEN": token,
            "TRUING_GUARD_STARTER": str(os.getpid()),
            "TRUING_WEIGHTS_DIR": str(self.weights_dir.absolute()),
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if self.lora_rank else "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }


def _kept_token(path: Path) -> str:
    """Return the random text in a file of this user's alone, which is made where there is none."""
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text()


def write_inside(folder: Path) -> None:
    """Write our part of the server into a folder, as a package and the entry point by which vLLM finds it."""
    package, info = folder / PACKAGE, folder / f"{PACKAGE}-{truing.__version__}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for file in Path(inside.__file__).parent.glob("*.py"):
        shutil.copy(file, package)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {truing.__version__}\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{PACKAGE} = {PACKAGE}.engine:register\n")


def make_socket_folder(socket: Path) -> None:
    """Make the folder of a unix socket this user's alone. Raises ConfigError where it is not, and cannot be."""
    folder = socket.expanduser().absolute().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
            raise ConfigError(
                f"rollout.serve.uds: others may look into {folder}; put the socket into a folder of its own, with mode 0700"
            )
        socket.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"rollout.serve.uds: {folder} cannot be made: {error.strerror}; choose another folder") from error


@attrs.define(eq=False, kw_only=True)
class Running:
    """A server that was started, with everything that it started."""

    process: subprocess.Popen[bytes]
    address: Address
    log: Path

    @classmethod
    def start(cls, program: Program, folder: Path, run_dir: Path, log: str) -> Running:
        """Start `vllm serve` for a run; `folder`, which must not be there yet, will hold our part of it.

        Raises ConfigError, SetupError.
        """
        command, token = program.command(), program.token(run_dir / TOKEN_FILE)
        if program.settings.uds is not None:
            make_socket_folder(program.settings.uds)
        program.weights_dir.mkdir(parents=True, exist_ok=True)
        program.weights_dir.chmod(0o700)
        write_inside(folder)
        with (run_dir / log).open("wb") as output:
            process = subprocess.Popen(
                command,
                env=program.environment(folder, token),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
        return cls(process=process, address=Address(url=program.settings.url, token=token), log=run_dir / log)

    def wait_until_healthy(self, seconds: float) -> None:
        """Raise SetupError, with the end of the log, where the server dies first or takes longer."""
        until = time.monotonic() + seconds
        transport = httpx.HTTPTransport(uds=self.address.socket)
        with httpx.Client(base_url=self.address.base_url, transport=transport, trust_env=False, timeout=CONNECT_SECONDS) as client:
            while self.process.poll() is None and time.monotonic() < until:
                try:
                    if client.get("/health").status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(_POLL_SECONDS)
        code = self.process.poll()
        what = (
            f"was not healthy within {seconds:.0f} s (rollout.serve.start_timeout)" if code is None else f"ended with code {code}"
        )
        raise SetupError(f"vllm serve {what}; its log, {self.log}, ends:\n{self.log_end()}")

    def log_end(self) -> str:
        """Return the last lines of the server's log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOG_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-LOG_LINES:])

    def stop(self) -> None:
        """End the server and all that it started, in order if it does so within STOP_SECONDS."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)  # workers that outlived it
        self.process.wait()
        if self.address.socket is not None:
            Path(self.address.socket).unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
