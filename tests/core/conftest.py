"""What tests of episodes share."""

from __future__ import annotations

import pytest

from tests.core.conversations import GUESS, opened


@pytest.fixture
def play(tmp_path):
    (tmp_path / "guess.py").write_text(GUESS)
    lives = []

    def begin(say, environment="guess.Guess", **options):
        live = opened(tmp_path, say, **{"environment": environment, **options})
        lives.append(live)
        return live

    yield begin
    for live in lives:
        live.close()
        assert live.engine.closed == 1


@pytest.fixture(params=[False, True], ids=["together", "server"])
def server(request):
    return request.param
