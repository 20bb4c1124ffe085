"""The fast way: every prompt computed once, and rows of no padding, as far as the model's attention can be told so."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from truing.data.layouts import LAYOUT_ARGUMENT
from truing.data.row import KeptKeys, RowLayout, TreeSpan
from truing.model.lent import lent
from truing.model.logits import Head
from truing_transformers.attention import NAME, STEP_ARGUMENT, Batch, Step
from truing_transformers.head import few_logits
from truing_transformers.row import Group, Row
from truing_transformers.sampler import Sampler

PREFILL_TOKENS = 8192
"""Most tokens of prompts that are computed in one pass, unless one prompt has more."""
MOST_PADDING = {"cpu": 128}
"""By device, the positions of padding up to which prompts of unequal lengths share their calls of attention; elsewhere any number,
for there it is calls that cost."""


class SharedPrompts:
    """Computes prompts once and keeps their keys and values once for all of their completions.

    Logits are those that `head` makes of the decoder's hidden states, or the model's own without one.
    """

    def __init__(self, model: PreTrainedModel, max_batch_tokens: int, head: Head | None) -> None:
        self.model = model
        self.max_batch_tokens = max_batch_tokens
        self.head = head

    def complete(self, groups: Sequence[Group], sampler: Sampler, ends: Collection[int]) -> Iterator[Row]:
        """Yield every row when it is finished; groups are begun in order of length as others leave room."""
        waiting = sorted(groups, key=lambda group: len(group[0].request.prompt_ids), reverse=True)
        running: list[Batch] = []
        while waiting or running:
            with lent(self.model, NAME):
                finished = self._advance(waiting, running, sampler, ends)
            yield from finished

    def _advance(self, waiting: list[Group], running: list[Batch], sampler: Sampler, ends: Collection[int]) -> list[Row]:
        """Draw tokens until rows are finished, and return those."""
        finished: list[Row] = []
        while not finished:
            admitted = self._admit(waiting, running)
            if admitted:
                kept = KeptKeys()
                logits = self._prompts(admitted, kept)
                drawing = [Batch(admitted, kept)]
                running += drawing
            else:
                logits = self._step(running)
                drawing = running
            _add_tokens([row for batch in drawing for row in batch.rows], logits, sampler, ends)
            finished = list(itertools.chain.from_iterable(batch.drop_finished() for batch in drawing))
            running[:] = [batch for batch in running if batch.rows]
        return finished

    def _admit(self, waiting: list[Group], running: Sequence[Batch]) -> list[Group]:
        """Take those groups out of the waiting ones that may begin together now; one may always, where none is running."""
        admitted: list[Group] = []
        room = self.max_batch_tokens - sum(batch.reserved for batch in running)
        longest = tokens = 0
        while waiting:
            group, length = waiting[0], len(waiting[0][0].request.prompt_ids)
            longest = longest or length
            tokens += length
            room -= longest + sum(row.limit for row in group)
            if room < 0 and (admitted or running):
                break
            padding = longest * (len(admitted) + 1) - tokens
            if admitted and (tokens > PREFILL_TOKENS or padding > MOST_PADDING.get(self.model.device.type, padding)):
                break
            admitted.append(waiting.pop(0))
        return admitted

    def _prompts(self, groups: Sequence[Group], kept: KeptKeys) -> Tensor:
        """Compute the groups' prompts in one row, and return the logits [R, V] of every row's first token."""
        prompts = [group[0].request.prompt_ids for group in groups]
        stops = list(itertools.accumulate(map(len, prompts)))
        spans = tuple(TreeSpan((stop - len(ids), stop), ()) for ids, stop in zip(prompts, stops, strict=True))
        layout = RowLayout(spans, kept=kept).to(self.model.device)
        positions = [position for ids in prompts for position in range(len(ids))]
        last = torch.tensor([stop - 1 for stop in stops], device=self.model.device)
        logits = self._call([token for ids in prompts for token in ids], positions, last, **{LAYOUT_ARGUMENT: layout})
        return logits.repeat_interleave(torch.tensor([len(group) for group in groups], device=logits.device), dim=0)

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        """Compute the last token of every row, and return the logits [R, V] of the next ones."""
        rows = [row for batch in batches for row in batch.rows]
        for batch in batches:
            batch.begin_step()
        step = {STEP_ARGUMENT: Step(batches)}
        return self._call([row.token_ids[-1] for row in rows], [row.position for row in rows], None, **step)

    def _call(self, ids: Sequence[int], positions: Sequence[int], at: Tensor | None, **arguments: Any) -> Tensor:
        """Return logits of one row of tokens, [S, V], or of those at the positions `at` alone."""
        device = self.model.device
        inputs = {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": torch.tensor([positions], device=device),
            # handed through by transformers as it is, so that it builds none of its own
            "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
            "use_cache": False,
            **arguments,
        }
        if self.head is None:
            logits: Tensor = self.model(**inputs, **({} if at is None else {"logits_to_keep": at})).logits[0]
            return logits
        hidden: Tensor = self.model.get_decoder()(**inputs).last_hidden_state[0]
        return few_logits(self.head, hidden if at is None else hidden[at])


def _add_tokens(rows: Sequence[Row], logits: Tensor, sampler: Sampler, ends: Collection[int]) -> None:
    tokens, logps = sampler.draw(logits, [row.noise for row in rows])
    for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
        row.add(token, logp, ends)
