"""The live backend: requests in, completions out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from truing import Completion, ConfigError, OpenContext, RolloutRequest, VersionSpan, WeightSource
from truing.model.spread import is_spread
from truing_transformers.probe import choose_way
from truing_transformers.row import Row, rows_of
from truing_transformers.sampler import Sampler


class LiveTransformers:
    """Generates with the policy, adapter on, as it is when `generate` is called; between two completions it is untouched.

    A sample depends on its request, its seed and the weights. Completions end with an end token, of which the model's generation
    configuration and the tokenizer may name several. Of the former nothing else is used: no penalty, no default temperature.
    """

    def __init__(self, context: OpenContext, max_batch_tokens: int) -> None:
        self.context = context
        self.version = 0
        self.choice = choose_way(self._policy(), max_batch_tokens)
        """How this policy is sampled, and why."""
        self.about = self.choice.reason

    def _policy(self) -> PreTrainedModel:
        """Return the model, with an adapter's layers in it if there are any. Raises ConfigError where its weights are sharded."""
        model = self.context.policy
        if is_spread(model):
            raise ConfigError(
                "rollout: transformers generates with the policy itself, whose weights are spread over processes here; train "
                "without sharding, or sample with another backend, such as vllm"
            )
        return model

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield the completions of all requests as they finish; those that share their sampling are computed together."""
        in_order = sorted(requests, key=lambda request: repr(request.sampling))
        for sampling, group in itertools.groupby(in_order, key=lambda request: request.sampling):
            rows = [rows_of(request) for request in group if request.n]
            for row in self.choice.way.complete(rows, Sampler(sampling), self.context.end_tokens):
                yield self._completion(row)

    def _completion(self, row: Row) -> Completion:
        assert row.finish_reason is not None
        failed = row.finish_reason == "error"
        return Completion(
            request_id=row.request.id,
            index=row.index,
            prompt_ids=row.request.prompt_ids,
            token_ids=tuple(row.token_ids),
            finish_reason=row.finish_reason,
            versions=(VersionSpan(version=self.version, start=0, end=len(row.token_ids)),),
            token_logps=tuple(row.token_logps),
            text=str(self.context.tokenizer.decode(row.token_ids, skip_special_tokens=True)),
            columns=row.request.columns,
            extra={"error": "the policy's probabilities are not finite"} if failed else {},
        )

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Note the version; the policy itself is what generates."""
        self.version = version

    def close(self) -> None:
        """Nothing is held."""
