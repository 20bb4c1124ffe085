"""The settings of a server: what `rollout.serve` may say."""

from __future__ import annotations

from pathlib import Path

import attrs

from truing import ConfigError, setting

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that only this machine reaches."""


@attrs.frozen(kw_only=True)
class ServeSettings:
    """How `truing vllm-serve`, or a run in mode spawn, starts `vllm serve`."""

    executable: str = setting("vllm", help="The vllm program: a name on PATH, or its path in the environment that has vLLM.")
    host: str = setting("127.0.0.1", help="Address to listen on; one that other machines reach needs a token.")
    port: int = setting(8000, gt=0, lt=65536, help="Port to listen on.")
    uds: Path | None = setting(None, help="Unix socket to listen on, instead of host and port; its folder is made 0700.")
    token: str | None = setting(None, help="What clients must send; null: environment TRUING_VLLM_TOKEN, or else a random one.")
    tensor_parallel_size: int = setting(1, gt=0, help="Devices that one copy of the model is spread over.")
    data_parallel_size: int = setting(
        1, gt=0, help="Copies of the model; with more than one, adapters are merged before they are sent."
    )
    gpu_memory_utilization: float | None = setting(None, gt=0, le=1, help="Share of a GPU's memory to use; null is vLLM's default.")
    kv_cache_memory_bytes: int | None = setting(None, gt=0, help="Bytes for keys and values, instead of a share of the memory.")
    dtype: str = setting("auto", help="Type that it computes in; auto is the one that the model is stored in.")
    max_model_len: int | None = setting(None, gt=0, help="Most tokens of prompt and completion; null is the model's.")
    enable_prefix_caching: bool = setting(True, help="Compute a prompt once for all of its completions.")
    enforce_eager: bool = setting(False, help="Do not compile or capture graphs: quicker to start, slower to sample.")
    max_loras: int = setting(4, gt=0, help="Versions of an adapter held at once; at least rollout.max_staleness + 1.")
    args: tuple[str, ...] = setting((), help="Further arguments for `vllm serve`, word by word.")
    start_timeout: float = setting(900.0, gt=0, help="Seconds within which the server must be healthy.")

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        if self.uds is not None:
            return f"unix:{self.uds.expanduser().absolute()}"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def require_safe(self, token: str | None) -> None:
        """Raise ConfigError for an address that others reach without a token that somebody chose."""
        if self.uds is None and self.host not in LOOPBACK and not token:
            raise ConfigError(
                f"rollout.serve.host is {self.host!r}, which other machines reach: whoever does could replace its weights. "
                "Set rollout.token (or the environment's TRUING_VLLM_TOKEN) to a long random text, or listen on 127.0.0.1"
            )
