"""A causal language model that takes prompt trees and gives the log-probabilities of their completions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.data.batch import Forward, TreeBatch
from truing.loss import Layout, LossInputs, Needs
from truing.model.head import TokenScores, score_logits, score_tokens

OFFERED = Needs.REFERENCE_LOGPS | Needs.PROMPT_LOGPS | Needs.ENTROPY | Needs.SQUARED_PROBS
"""What the forward and the reference can give a loss today."""


@attrs.frozen(eq=False)
class PolicyOutput:
    """What one forward says of a batch's T counted completion tokens, and of its Q counted prompt tokens."""

    tokens: TokenScores
    prompt_tokens: TokenScores | None = None


class Policy(nn.Module):
    """Wraps a transformers model, with or without a peft adapter; its code is untouched.

    Called with a TreeBatch it returns a PolicyOutput. It runs the decoder and then the head at counted positions only. For a model
    whose logits are more than head(decoder(x)) (a cap, a scale), `own_logits` asks the model itself for them.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, forward: Forward, *, own_logits: bool = False) -> None:
        super().__init__()
        self.model = model
        self.layout = forward
        self.own_logits = own_logits

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with adapter layers in it if there are any."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    def adopt_forward(self, other: Policy) -> None:
        """Compute as `other` does, whose model is of the same class."""
        self.layout, self.own_logits = other.layout, other.own_logits
        self.causal_lm.set_attn_implementation(other.causal_lm.config._attn_implementation)

    def forward(self, batch: TreeBatch, needs: Needs = Needs.NOTHING, *, adapter: bool = True) -> PolicyOutput:
        """Score the batch's counted tokens; `adapter=False` scores them with the adapter off."""
        with nullcontext() if adapter else self._adapter_off():
            if self.own_logits:
                return self._score_with_own_logits(batch, needs)
            decoder = self.causal_lm.get_decoder()
            hidden = decoder(**batch.model_inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            head = self.causal_lm.get_output_embeddings()
            tokens = score_tokens(hidden[batch.predictors], batch.targets, head, needs)
            if Needs.PROMPT_LOGPS not in needs:
                return PolicyOutput(tokens)
            prompt = score_tokens(hidden[batch.prompt_predictors], batch.prompt_targets, head, Needs.NOTHING)
            return PolicyOutput(tokens, prompt)

    def _score_with_own_logits(self, batch: TreeBatch, needs: Needs) -> PolicyOutput:
        logits = self.causal_lm(**batch.model_inputs, use_cache=False).logits.flatten(0, 1)
        tokens = score_logits(logits[batch.predictors], batch.targets, needs)
        if Needs.PROMPT_LOGPS not in needs:
            return PolicyOutput(tokens)
        return PolicyOutput(tokens, score_logits(logits[batch.prompt_predictors], batch.prompt_targets, Needs.NOTHING))

    def _adapter_off(self) -> AbstractContextManager[Any]:
        assert isinstance(self.model, PeftModel), "only a model with an adapter can turn it off"
        return self.model.disable_adapter()


def loss_inputs(
    batch: TreeBatch, output: PolicyOutput, layout: Layout, *, reference_token_logps: Tensor | None = None, state: Any = None
) -> LossInputs:
    """Join what the dataset says of a batch with what the models say, as a loss reads it."""
    device = output.tokens.logps.device
    branches = [branch for tree in batch.trees for branch in tree.branches]

    def per_branch(values: list[Any], dtype: torch.dtype) -> Tensor | None:
        return None if any(value is None for value in values) else torch.tensor(values, dtype=dtype, device=device)

    prompt = output.prompt_tokens
    return LossInputs(
        layout=layout,
        token_logps=output.tokens.logps,
        sequence_ids=batch.sequence_ids,
        tree_ids=batch.tree_ids,
        lengths=batch.lengths,
        token_entropy=output.tokens.entropy,
        token_squared_probs=output.tokens.squared_probs,
        prompt_token_logps=prompt.logps if prompt else None,
        prompt_tree_ids=batch.prompt_tree_ids if prompt else None,
        reference_token_logps=reference_token_logps,
        labels=per_branch([branch.label for branch in branches], torch.bool),
        ranks=per_branch([branch.rank for branch in branches], torch.int64),
        margins=_margins(batch, device),
        state=state or {},
    )


def _margins(batch: TreeBatch, device: torch.device) -> Tensor | None:
    if all(tree.margin is None for tree in batch.trees):
        return None
    per_tree = torch.tensor([tree.margin or 0.0 for tree in batch.trees], device=device)
    return per_tree[batch.tree_ids]
