"""The real programs are used by `make test-rollouts` alone, which sets TRUING_ROLLOUTS; one server serves the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rollouts.real import RealVllm, serving

REAL = "TRUING_ROLLOUTS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get(REAL):
        for item in items:
            if item.get_closest_marker("rollouts"):
                item.add_marker(pytest.mark.skip(reason="needs a real vLLM or OpenEnv: make test-rollouts"))


@pytest.fixture(scope="session")
def real_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    with serving(tmp_path_factory.mktemp("vllm")) as server:
        yield server
