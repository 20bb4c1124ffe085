"""What became of the rows: nothing is left out or cut without being counted here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

_SHOWN = 3


@attrs.define(kw_only=True)
class DataReport:
    """Counts of one preparation of data, for the terminal and for environment.json.

    A row gives one sample, or several where its format makes several of it: then what is dropped is counted in samples.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    """Where prompts are cut to leave room for what is to be sampled, what is left if that is less."""
    rows_read: int = 0
    rows_kept: int = 0
    """Rows of which a sample is kept."""
    samples_read: int = 0
    """Samples that the rows gave."""
    samples_kept: int = 0
    """Prompt trees that are trained on."""
    rows_skipped: int = 0
    """Rows that could not be read, with data.on_bad_row: skip."""
    rows_unfinished: int = 0
    """Last rows of text and CSV files without a line break at the end, which may be cut."""
    rows_too_long: int = 0
    prompts_too_long: int = 0
    """Prompts to be answered that are left out because they are over max_prompt_length."""
    rows_nothing_counted: int = 0
    """Rows of which truncation left a response no token, or that never had one."""
    rows_same_tokens: int = 0
    """Pairs whose sides are the same tokens, after truncation or to this tokenizer."""
    rows_not_mixed: int = 0
    """Good rows that the shares of a mixture leave out."""
    prompts_truncated: int = 0
    completions_truncated: int = 0
    ends_lost: int = 0
    """Truncated completions that lost their end token."""
    mismatched_truncated: int = 0
    """Completions that were cut to stand behind another prompt."""
    prompts_split: int = 0
    """Rows whose prompt ends earlier than its text, because its last token and the response's first are one."""
    prompts_invented: int = 0
    """Rows with an empty prompt, where the beginning or end token stands in."""
    tokens: int = 0
    """Tokens of all kept trees: prompts once, and every branch."""
    notes: Counter[str] = attrs.field(factory=Counter)
    """What formats made of rows, by description."""
    skipped: list[str] = attrs.field(factory=list)
    """The first rows skipped: place and reason."""

    def skip(self, where: str, reason: str) -> None:
        """Count a row that cannot be read, and remember the first few."""
        self.rows_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append(f"{where}: {reason}")

    def lines(self) -> list[str]:
        """Return the report as sentences, without those that count nothing."""
        several = self.samples_read > self.rows_read - self.rows_skipped
        row, sample = ("row(s) ", "sample(s) ") if several else ("", "")
        counted = [
            (self.rows_skipped, f"{row}skipped: cannot be read"),
            (self.rows_unfinished, "row(s) at the end of a file that has no line break there: it may have been cut"),
            (self.rows_too_long, f"{sample}dropped: longer than max_length {self.max_length}"),
            (self.prompts_too_long, f"prompt(s) dropped: longer than max_prompt_length {self.max_prompt_length}"),
            (self.rows_nothing_counted, f"{sample}dropped: a response has no token left to train on"),
            (self.rows_same_tokens, f"{sample}dropped: chosen and rejected are the same tokens"),
            (self.rows_not_mixed, f"{sample}left out: beyond their dataset's share of the mixture"),
            (self.prompts_truncated, f"prompt(s) truncated to {self.max_prompt_length} tokens, from the beginning"),
            (self.completions_truncated, "completion(s) truncated"),
            (self.ends_lost, "of these lost the end token"),
            (self.mismatched_truncated, f"mismatched completion(s) cut, to fit max_length {self.max_length} behind another prompt"),
            (self.prompts_split, "prompt(s) cut earlier: a token holds the last characters and the first of a response"),
            (self.prompts_invented, "prompt(s) empty: the beginning or end token stands in"),
            *((count, note) for note, count in self.notes.items()),
        ]
        read = _counted(self.rows_read, "row(s) read") + (f" as {_counted(self.samples_read, 'sample(s)')}" if several else "")
        summary = f"{read}, {self.samples_kept:,} kept ({self.tokens:,} tokens)"
        sentences = [_counted(count, what) for count, what in counted if count]
        more = self.rows_skipped - len(self.skipped)
        skipped = [f"  skipped {row}" for row in self.skipped] + ([f"  and {more:,} more"] if more else [])
        return [summary, *sentences, *skipped]

    def as_dict(self) -> dict[str, Any]:
        """Return every count as plain values for JSON."""
        return {**attrs.asdict(self), "notes": dict(self.notes)}


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what.replace('(s)', '' if count == 1 else 's')}"
