"""The question after every push: prompts of which the trainer knows what comes next, by which a server shows its weights.

Tokens are drawn as those of completions are. Log-probabilities of the prompt itself would say more with one request, but vLLM 0.32
dies of that question where adapters are enabled and other requests are in the same batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor

from truing_vllm.faults import StaleError
from truing_vllm.server import Server
from truing_vllm.wire import draw_params

TEMPERATURE = 0.5
"""Not 1, so that log-probabilities before temperature are found out."""


@attrs.frozen(kw_only=True, eq=False)
class Probe:
    """What the policy's weights of now say about prompts."""

    prompts: Sequence[Sequence[int]]
    next_logps: Tensor
    """[prompts, V] of every token as the next one, at temperature 1; on the CPU."""
    tolerance: float
    """Mean difference in nats that rounding explains."""

    async def check(self, server: Server, model: str | None, *, seconds: float) -> None:
        """Return when a server's weights of that name are the policy's; None is the model itself.

        Raises StaleError where they are others, or another ServerFault.
        """
        params: dict[str, Any] = draw_params(seed=0, limit=1, temperature=TEMPERATURE)
        answers = await asyncio.gather(*(server.sample(prompt, params, model, seconds=seconds) for prompt in self.prompts))
        if not all(sample.token_ids for sample in answers):
            raise StaleError(f"{server} has weights whose probabilities are not finite")
        tokens = [sample.token_ids[0] for sample in answers]
        self._compare(server, tokens, self.next_logps.new_tensor([sample.token_logps[0] for sample in answers]))

    def _compare(self, server: Server, tokens: Sequence[int], found: Tensor) -> None:
        def gap(logps: Tensor) -> float:
            return float((logps[range(len(tokens)), tokens] - found).abs().mean())

        processed = gap((self.next_logps / TEMPERATURE).log_softmax(-1))
        if processed <= self.tolerance:
            return
        if gap(self.next_logps) <= self.tolerance:
            raise StaleError(
                f"{server} gives log-probabilities of other distributions than it draws from: those before temperature; start it "
                "with --logprobs-mode processed_logprobs, as `truing vllm-serve` does"
            )
        raise StaleError(
            f"{server} does not have the policy's weights: its log-probabilities of the probe differ by {processed:.2g} nats in "
            f"the mean (allowed: {self.tolerance:g})"
        )
