"""The reward of the sums: one point for the right answer and nothing else."""

from __future__ import annotations


def right_answer(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """Return 1.0 for each completion that is its row's answer, else 0.0."""
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]
