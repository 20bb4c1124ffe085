"""Conversations as other tools keep them: HH-RLHF's transcripts, the rows of ms-swift, and those of ShareGPT."""

from __future__ import annotations

from truing import DatasetStrategy, hookimpl
from truing_transcripts.hh_rlhf import TranscriptPair, TranscriptPrompt
from truing_transcripts.sharegpt import ShareGptAnswer, ShareGptLabel, ShareGptPair, ShareGptPrompt
from truing_transcripts.swift import SwiftAnswer, SwiftLabel, SwiftPair, SwiftPrompt

__all__ = ["FORMATS", "register_dataset_strategy"]

FORMATS: list[type[DatasetStrategy]] = [
    TranscriptPair,
    TranscriptPrompt,
    ShareGptPair,
    ShareGptAnswer,
    ShareGptLabel,
    ShareGptPrompt,
    SwiftPair,
    SwiftAnswer,
    SwiftLabel,
    SwiftPrompt,
]
"""The format classes: one for each name and layout."""


@hookimpl
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register `hh_rlhf`, `swift` and `sharegpt`."""
    return FORMATS
