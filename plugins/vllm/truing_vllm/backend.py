"""The rollout backend `vllm`: its settings."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import attrs

from truing import ConfigError, LiveRollout, OpenContext, Rollout, setting
from truing_vllm.settings import ServeSettings


@attrs.frozen(kw_only=True)
class VllmRollout(Rollout):
    """Samples with vLLM servers, which get the policy's weights after every update and show that they have them.

    Servers are `truing vllm-serve` processes, in an environment of their own; nothing of vLLM is imported here.
    """

    name: ClassVar[str] = "vllm"

    mode: Literal["server", "spawn", "colocate"] = setting(
        "server", help="server: those that `server` names or `truing vllm-serve` started. spawn: the run starts and ends its own."
    )
    server: str | tuple[str, ...] | None = setting(
        None, help="http://host:port or unix:/path/of.sock, or several; null: those that vllm-serve started for this output.dir."
    )
    host: str | None = setting(None, help="Host of a server, an older spelling of `server`.")
    port: int | None = setting(
        None, gt=0, lt=65536, help="Port of the server that `host` names, 8000 if null; without `host`, of one at 127.0.0.1."
    )
    token: str | None = setting(
        None,
        help="What servers ask for, and those are told that are started; null: serve.token, environment TRUING_VLLM_TOKEN, or what "
        "vllm-serve wrote down.",
    )
    timeout: float = setting(
        300.0, gt=0, help="Seconds that a server may take for one completion or push, and that one that is gone has to come back."
    )
    max_concurrency: int = setting(256, gt=0, help="Completions in flight at once, on all servers together, of each process.")
    weights_dir: Path | None = setting(
        None, help="Where the folder vllm-weights lies, that weights go through; null is output.dir. One in memory is faster."
    )
    probe_tolerance: float | None = setting(
        None,
        gt=0,
        help="Mean difference in nats between the trainer's and a server's log-probabilities after a push; null: 1e-3 where both "
        "compute in float32, else 0.1.",
    )
    serve: ServeSettings = setting(factory=ServeSettings, help="How servers are started.")

    def __attrs_post_init__(self) -> None:
        if self.mode == "colocate":
            raise ConfigError(
                "rollout.mode is colocate, vLLM in the process that trains, which is not supported: vLLM pins other versions "
                "than the newest, and on a CPU it takes the trainer's threads. Use spawn, which starts a server beside the run"
            )
        for key, value in (("host", self.host), ("port", self.port)):
            if self.server is not None and value is not None:
                raise ConfigError(
                    f"rollout.server is {self.server!r} and rollout.{key} {value!r}; they say the same thing, so keep server"
                )
        if self.mode == "spawn" and self.urls:
            raise ConfigError(
                f"rollout.mode is spawn, so that the run starts its own server, and {', '.join(self.urls)} is named too; "
                "remove one (where its own listens say rollout.serve.host, port or uds)"
            )
        if None not in (self.token, self.serve.token) and self.token != self.serve.token:
            raise ConfigError(
                "rollout.token and rollout.serve.token are not the same, and both are what servers ask for; keep rollout.token"
            )

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers that the configuration names."""
        if self.host is not None or self.port is not None:
            return (f"http://{self.host or '127.0.0.1'}:{self.port or 8000}",)
        return () if self.server is None else (self.server,) if isinstance(self.server, str) else self.server

    @property
    def served(self) -> ServeSettings:
        """How servers are started that ask for the token that the run sends."""
        return self.serve if self.token is None else attrs.evolve(self.serve, token=self.token)

    def open(self, context: OpenContext) -> LiveRollout:
        """Return the live backend, connected. Raises SetupError where no server is known, RolloutError where none answers."""
        from truing_vllm.opening import open_live

        return open_live(self, context)
