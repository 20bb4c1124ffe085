"""An OpenEnv server of tools, for the tests: `add`, `fail`, and a reset that fails. It needs openenv beside it."""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Observation, State, create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation


class Calculator(MCPEnvironment):
    """One tool that adds, and one that fails."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        """Register the tools."""
        server = FastMCP("calculator")

        @server.tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        @server.tool
        def fail(why: str) -> str:
            """Fail."""
            raise ValueError(why)

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Observation:
        """Begin, unless told to fail."""
        if "fail" in options:
            raise ValueError(f"told to fail: {options['fail']}")
        return Observation()

    def _step_impl(self, action: Any, timeout_s: float | None = None, **_: Any) -> Observation:
        raise ValueError(f"no action but calls: {action}")

    @property
    def state(self) -> State:
        """Nothing."""
        return State()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    app = create_fastapi_app(Calculator, CallToolAction, CallToolObservation, max_concurrent_envs=8)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
