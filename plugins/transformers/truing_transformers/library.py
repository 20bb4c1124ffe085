"""The way that is right for every model: the library's own generate(), with this package's draws."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from truing.model.lent import lent
from truing_transformers.row import Group, Row
from truing_transformers.sampler import Sampler


class LibraryGenerate:
    """Calls generate() for one prompt at a time, repeated for its completions, so that nothing is padded."""

    def __init__(self, model: PreTrainedModel, attention: str) -> None:
        self.model = model
        self.attention = attention

    def complete(self, groups: Sequence[Group], sampler: Sampler, ends: Collection[int]) -> Iterator[Row]:
        """Yield every row when its whole group is finished."""
        for group in groups:
            with lent(self.model, self.attention):
                self._generate(group, sampler, ends)
            yield from group

    def _generate(self, group: Group, sampler: Sampler, ends: Collection[int]) -> None:
        ids = torch.tensor([group[0].request.prompt_ids] * len(group), device=self.model.device)
        config = GenerationConfig(
            max_new_tokens=max(row.limit for row in group),
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
        draw = LogitsProcessorList([_Draw(group, sampler, ends)])
        model: Any = self.model
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=draw)


class _Draw(LogitsProcessor):
    """Draws for the rows that go on, and leaves generate() no other token to choose."""

    def __init__(self, group: Group, sampler: Sampler, ends: Collection[int]) -> None:
        self.group, self.sampler, self.ends = group, sampler, ends

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logps = self.sampler.draw(scores, [row.noise for row in self.group])
        for row, token, logp in zip(self.group, tokens.tolist(), logps.tolist(), strict=True):
            if row.finish_reason is None:
                row.add(token, logp, self.ends)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)
