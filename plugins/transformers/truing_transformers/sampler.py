"""Draws tokens from logits, and says with which probability each was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from truing import Sampling
from truing.model.logits import wide

BLOCK = 256
"""Tokens whose probabilities are summed for the first of two draws."""


class Sampler:
    """Draws a token for each row of logits.

    Of numbers p_i and exponential E_i the index of the largest p_i / E_i is i with probability p_i / (sum of p): the Gumbel-max
    trick. A row draws a block of tokens so, by the block's sum, and then a token of the block; that is the same distribution for a
    few hundred random numbers instead of one for every token of the vocabulary. Two rows with the same E get the same token but
    where the two largest quotients are as close as the rows' logits: that another batch rounds differently hardly ever shows.

    Log-probabilities are those of the distribution that is drawn from: after temperature, top_k and top_p. At temperature 0 the
    most probable token is taken, and its log-probability is that at temperature 1.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.greedy = sampling.temperature == 0
        self.warpers = LogitsProcessorList()
        if self.greedy:
            return
        if sampling.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def draw(self, logits: Tensor, noises: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
        """Return tokens [R] and their log-probabilities [R] for logits [R, V]; every generator advances by one token."""
        scores = self.warpers(torch.LongTensor(), logits.to(wide(logits.dtype)))
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp_()
        blocks = pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
        sums = blocks.sum(-1)
        tokens = scores.argmax(-1) if self.greedy else _raced(blocks, sums, noises)
        logps = scores.gather(-1, tokens.unsqueeze(-1)) - top - sums.sum(-1, keepdim=True).log()
        return tokens, logps.squeeze(-1)


def _raced(blocks: Tensor, sums: Tensor, noises: Sequence[np.random.Generator]) -> Tensor:
    """Return tokens [R] drawn by the weights blocks [R, V / BLOCK, BLOCK], whose sums are `sums`."""
    count = sums.shape[-1]
    # of 53 random bits each: in a float32, which has 23, a token of no probability to speak of would win once in a while
    drawn = np.stack([noise.standard_exponential(count + BLOCK) for noise in noises])
    exponentials = torch.from_numpy(drawn).to(sums.device)
    block = (sums / exponentials[:, :count]).argmax(-1)
    inside = blocks[torch.arange(len(block), device=block.device), block]
    return block * BLOCK + (inside / exponentials[:, count:]).argmax(-1)
