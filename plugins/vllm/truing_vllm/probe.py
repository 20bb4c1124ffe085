"""The question after every push: a prompt whose log-probabilities the trainer knows, by which a server shows its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from truing_vllm.faults import StaleError
from truing_vllm.server import Server
from truing_vllm.updates import Update
from truing_vllm.wire import FLOOR, PromptLogps, Sample

TEMPERATURE = 0.5
"""Of the token that is drawn after the prompt: its log-probability shows whether the server's are those after temperature."""


@attrs.frozen(kw_only=True)
class Probe:
    """What the policy's weights of now say about a prompt."""

    prompt: Sequence[int]
    prompt_logps: Sequence[float]
    """Of each token but the first, given those before it."""
    next_logps: Sequence[float]
    """Of every token of the vocabulary as the next one, at TEMPERATURE."""
    tolerance: float
    """Mean difference in nats that rounding explains."""

    async def check(self, server: Server, update: Update | None, *, seconds: float) -> str | None:
        """Return which start of the server answered. Raises StaleError where its weights are others, or another ServerFault."""
        params: dict[str, Any] = {
            "n": 1,
            "seed": 0,
            "max_tokens": 1,
            "temperature": TEMPERATURE,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "prompt_logprobs": 0,
        }
        model = None if update is None else update.model
        sample, boot = await server.sample(self.prompt, params, model, seconds=seconds)
        self._compare(server, sample)
        return boot

    def _compare(self, server: Server, sample: Sample) -> None:
        if not sample.token_ids:
            raise StaleError(f"{server} has weights that give no probabilities: {sample.error}")
        found = _logps(self.prompt, sample.prompt_logps)
        if found is None:
            raise StaleError(f"{server} gave no log-probabilities of the prompt that it was asked about")
        gap = sum(abs(ours - theirs) for ours, theirs in zip(self.prompt_logps, found, strict=True)) / len(found)
        if not gap <= self.tolerance:
            raise StaleError(
                f"{server} does not have the policy's weights: its log-probabilities of the probe differ by {gap:.2g} nats in the "
                f"mean (allowed: {self.tolerance:g})"
            )
        expected, drawn = self.next_logps[sample.token_ids[0]], sample.token_logps[0]
        if not abs(expected - drawn) <= 4 * self.tolerance:
            raise StaleError(
                f"{server} gives log-probabilities of other distributions than it samples from ({drawn:.4f} for {expected:.4f}); "
                "start it with --logprobs-mode processed_logprobs, as `truing vllm-serve` does"
            )


def _logps(prompt: Sequence[int], answer: PromptLogps) -> list[float] | None:
    """Return the log-probability of each token of the prompt but the first; None where one is missing or is no number."""
    if answer is None or len(answer) != len(prompt):
        return None
    found = [None if entry is None else entry.get(str(token)) for token, entry in zip(prompt[1:], answer[1:], strict=True)]
    logps = [None if item is None else item.logprob for item in found]
    known = [logp for logp in logps if logp is not None and math.isfinite(logp) and logp > FLOOR]
    return known if len(known) == len(prompt) - 1 else None
