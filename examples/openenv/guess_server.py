"""An OpenEnv server of number guessing: after each guess the policy is told whether to go higher or lower.

It runs in an environment of its own, which has openenv: `python examples/openenv/guess_server.py --port 8000`.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from pydantic import Field

HIGHEST = 40
GUESSES = 3
SESSIONS = 64


class Guess(Action):
    """A guess."""

    guess: int = Field(ge=0, le=HIGHEST)


class Hint(Observation):
    """What is said to a guess."""

    hint: str


class GuessEnvironment(Environment[Guess, Hint, State]):
    """Find a number from 0 to 40 in three guesses. The first one is worth 1, the second two thirds, the third one third."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        """Begin without a number; reset chooses one."""
        super().__init__()
        self.number = 0
        self.guesses = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, answer: str | None = None, **_: Any) -> Hint:
        """Choose the number: the answer to the question in the prompt, where there is one, else any, by the seed."""
        self.number = random.Random(seed).randint(0, HIGHEST) if answer is None else int(answer)
        self.guesses = 0
        return Hint(hint=f"Guess 0 to {HIGHEST}." if answer is None else "")

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Hint:
        """Compare a guess with the number. The episode ends when it is right, and after the last guess."""
        self.guesses += 1
        if action.guess == self.number:
            return Hint(hint="right", reward=1 - (self.guesses - 1) / GUESSES, done=True)
        return Hint(hint="higher" if action.guess < self.number else "lower", reward=0.0, done=self.guesses == GUESSES)

    @property
    def state(self) -> State:
        """What only the server knows."""
        return State(step_count=self.guesses, number=self.number)


def main() -> None:
    """Serve on loopback: OpenEnv asks nobody for a token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    app = create_fastapi_app(GuessEnvironment, Guess, Hint, max_concurrent_envs=SESSIONS)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")


if __name__ == "__main__":
    main()
