"""Guesses which word a user meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `word` is most likely a typo of; None when more than a third of its letters would have to change."""
    word = word[:100]
    limit = max(1, len(word) // 3)
    close = [choice for choice in choices if abs(len(choice) - len(word)) <= limit and distance(word, choice) <= limit]
    return min(close, key=lambda choice: (distance(word, choice), -SequenceMatcher(None, word, choice).ratio()), default=None)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest choice, or the empty string when none is close."""
    match = closest(word, choices)
    return f"; did you mean {match!r}?" if match else ""


def families(names: Iterable[str]) -> list[str]:
    """Return names in order, those of a family with several as `family.*`; the family of `chatml.intel` is `chatml`."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.partition(".")[0], []).append(name)
    return [names[0] if len(names) == 1 else f"{family}.*" for family, names in found.items()]


def distance(first: str, second: str) -> int:
    """Return how many insertions, deletions, replacements and swaps of neighbours turn one word into the other.

    Damerau and Levenshtein's distance in its restricted form (optimal string alignment).
    """
    before: list[int] = []
    above = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        row = [i]
        for j, other in enumerate(second, 1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, above = above, row
    return above[-1]
