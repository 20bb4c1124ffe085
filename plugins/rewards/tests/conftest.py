from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from truing import Completion


def make(text: str, *, tokens: int | None = None, finish: Any = "stop", **columns: Any) -> Completion:
    """A completion with a token for each character, or as many as are asked for."""
    ids = tuple(text.encode()) if tokens is None else (1,) * tokens
    return Completion(
        request_id="r", index=0, prompt_ids=(1,), token_ids=ids, finish_reason=finish, prompt="Prompt", text=text, columns=columns
    )


@pytest.fixture(scope="session")
def completion() -> Callable[..., Completion]:
    return make
