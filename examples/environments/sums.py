"""An environment: a sum, and a second try for whoever gets it wrong."""

from __future__ import annotations


class SecondTry:
    """A right answer is worth 1, and at the second try a half. The question is the prompt; columns are the row's others."""

    def reset(self, seed: int | None = None, *, answer: str) -> None:
        """Begin with a row of the data, whose column `answer` this takes; there is nothing to say yet."""
        self.answer, self.worth = answer, 1.0

    def step(self, text: str) -> tuple[str, float, bool]:
        """Return what the policy reads next, what its turn was worth, and whether that was all."""
        if text.strip() == self.answer:
            return "Right.", self.worth, True
        self.worth /= 2
        return "No. Try again.", 0.0, self.worth < 0.5
