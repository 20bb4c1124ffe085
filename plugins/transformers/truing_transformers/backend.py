"""The rollout backend `transformers`: its settings."""

from __future__ import annotations

from typing import ClassVar

import attrs

from truing import LiveRollout, OpenContext, Rollout, setting


@attrs.frozen(kw_only=True)
class TransformersRollout(Rollout):
    """Samples with the policy itself, in the process that trains it, so that new weights need no transfer.

    A prompt is computed once for all of its completions, and a completion that ends leaves the batch at once.
    """

    name: ClassVar[str] = "transformers"

    max_batch_tokens: int = setting(
        65_536,
        gt=0,
        help="Positions whose keys and values are held at once, a prompt's counted once; one prompt's completions are never split.",
    )

    def open(self, context: OpenContext) -> LiveRollout:
        """Return the live backend. Raises ConfigError where the policy's weights are spread over processes."""
        from truing_transformers.live import LiveTransformers

        return LiveTransformers(context, self.max_batch_tokens)
