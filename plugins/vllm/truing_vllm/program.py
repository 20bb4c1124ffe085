"""`vllm serve` as a child process: its command line, its environment, the part of ours that runs in it, its health and its end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs
import httpx2 as httpx

import truing
from truing import ConfigError, SetupError
from truing_vllm import inside
from truing_vllm.address import TOKEN_VARIABLE, Address
from truing_vllm.connection import CONNECT_SECONDS
from truing_vllm.inside.guard import BOOT_HEADER
from truing_vllm.settings import ServeSettings
from truing_vllm.sockets import held_socket

PACKAGE = "truing_inside_vllm"
"""What our part is called in the server's environment, where truing need not be installed."""
BACKEND = "safetensors"
TOKEN_FILE = ".vllm-token"
"""In the run directory: servers of a run have one token, which a server that is started again has again."""
BOOT_VARIABLE = "TRUING_GUARD_BOOT"
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
    """The folder of ours that weights go through."""
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
            # each version is loaded twice, and what was unloaded holds its place until it is the oldest
            "--max-cpu-loras": 2 * serve.max_loras if self.lora_rank else None,
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
            BOOT_VARIABLE: secrets.token_hex(8),
            "TRUING_GUARD_STARTER": str(os.getpid()),
            "TRUING_WEIGHTS_DIR": str(self.weights_dir.absolute()),
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if self.lora_rank else "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }


def _kept_token(path: Path) -> str:
    """Return the random text in a file of this user's alone, which is made where there is none. Raises ConfigError for no text."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name) as draft:
            draft.write(secrets.token_urlsafe(32))
            draft.flush()
            os.link(draft.name, path)  # with its text in it at once, for another server of the run may read it
    except OSError as error:
        if not path.exists():
            raise ConfigError(
                f"{path}, for the token of the run's servers, cannot be written: {error}; set rollout.token, or {TOKEN_VARIABLE}"
            ) from error
    token = path.read_text().strip()
    if not token:
        raise ConfigError(f"{path}, which has the token of the run's servers, is empty; remove it, and start all of them anew")
    return token


def write_inside(folder: Path) -> None:
    """Write our part of the server into a folder, as a package and the entry point by which vLLM finds it."""
    package, info = folder / PACKAGE, folder / f"{PACKAGE}-{truing.__version__}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for file in Path(inside.__file__).parent.glob("*.py"):
        shutil.copy(file, package)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {truing.__version__}\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{PACKAGE} = {PACKAGE}.engine:register\n")


@attrs.define(eq=False, kw_only=True)
class Running:
    """A server that was started, with everything that it started."""

    process: subprocess.Popen[bytes]
    address: Address
    log: Path
    boot: str
    """What its guard calls this start."""
    held: ExitStack = attrs.field(factory=ExitStack)
    """Has its socket's path, until it is stopped."""

    @classmethod
    def start(cls, program: Program, folder: Path, run_dir: Path, log: str) -> Running:
        """Start `vllm serve` for a run; `folder`, which must not be there yet, will hold our part of it.

        Raises ConfigError, SetupError.
        """
        command, token = program.command(), program.token(run_dir / TOKEN_FILE)
        environment = program.environment(folder, token)
        try:
            program.weights_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            program.weights_dir.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"rollout.weights_dir: {program.weights_dir} cannot be made, for this user alone: {error}; choose another folder"
            ) from error
        write_inside(folder)
        with ExitStack() as held:
            if program.settings.uds is not None:
                held.enter_context(held_socket(program.settings.uds))
            with (run_dir / log).open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=0o077,
                )
            address = Address(url=program.settings.url, token=token)
            return cls(process=process, address=address, log=run_dir / log, boot=environment[BOOT_VARIABLE], held=held.pop_all())

    def wait_until_healthy(self, seconds: float) -> None:
        """Raise SetupError, with the end of the log, where the server dies first or takes longer, or another answers for it."""
        until = time.monotonic() + seconds
        transport = httpx.HTTPTransport(uds=self.address.socket)
        with httpx.Client(base_url=self.address.base_url, transport=transport, trust_env=False, timeout=CONNECT_SECONDS) as client:
            while self.process.poll() is None and time.monotonic() < until:
                try:
                    answer = client.get("/health")
                except httpx.HTTPError:
                    answer = None
                if answer is not None and answer.status_code == 200:
                    self._require_own(answer.headers.get(BOOT_HEADER))
                    return
                time.sleep(_POLL_SECONDS)
        late = f"vllm serve was not healthy within {seconds:.0f} s (rollout.serve.start_timeout); {self._log_ends()}"
        raise SetupError(self.death() or late)

    def _require_own(self, boot: str | None) -> None:
        if boot != self.boot:
            raise SetupError(
                f"something else answers at {self.address.url}, not the vllm serve that was started: "
                f"{'another server of vllm-serve' if boot else 'another program'} has that address. Choose another "
                f"rollout.serve.port or uds, or stop that one; {self._log_ends()}"
            )

    def death(self) -> str | None:
        """Return how the server ended, with the end of its log; None while it runs."""
        code = self.process.poll()
        return None if code is None else f"vllm serve ended with code {code}; {self._log_ends()}"

    def _log_ends(self) -> str:
        return f"its log, {self.log}, ends:\n{self.log_end()}"

    def log_end(self) -> str:
        """Return the last lines of the server's log, or why there are none."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _LOG_BYTES))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-LOG_LINES:])
        except OSError as error:
            return f"(it cannot be read: {error})"

    def stop(self) -> None:
        """End the server and all that it started, in order if it does so within STOP_SECONDS."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)  # workers that outlived it
        self.process.wait()
        self.held.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
