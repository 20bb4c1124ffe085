"""The rewards of the sums: a point for the right answer and nothing else, and one for a number and nothing else."""

from __future__ import annotations


def right_answer(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """Return 1.0 for each completion that is its row's answer, else 0.0."""
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def only_a_number(completions: list[str], **columns: object) -> list[float]:
    """Return 1.0 for each completion that is a number, right or wrong, else 0.0."""
    return [float(text.strip().isdecimal()) for text in completions]
