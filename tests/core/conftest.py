"""What tests of episodes share."""

from __future__ import annotations

import pytest

from tests.core.conversations import opened

GUESS = '''
import asyncio, time

OPEN = []

class Guess:
    """The policy guesses a number."""

    def reset(self, seed=None, secret=3):
        self.secret, self.seed = secret, seed
        OPEN.append(self)
        return f"Guess ({seed})."

    def step(self, text):
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number")
        number = int(text)
        if number == self.secret:
            return "right", 1.0, True
        return ("higher" if number < self.secret else "lower"), -0.25, False

    def close(self):
        OPEN.remove(self)

class Few(Guess):
    name, capacity, most = "few", 2, 0

    def step(self, text):
        Few.most = max(Few.most, len(OPEN))
        time.sleep(0.01)
        return super().step(text)

class Awaited(Guess):
    async def step(self, text):
        await asyncio.sleep(0)
        return super().step(text)

class Slow(Guess):
    def step(self, text):
        if text == "7":
            time.sleep(30)
        return super().step(text)
'''


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
